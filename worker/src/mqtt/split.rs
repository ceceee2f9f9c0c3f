//! Which of a shard's sessions subscribes which filter. Pure.

/// What a shared subscription begins with (MQTT-4.8.2).
const SHARED: &str = "$share/";

/// Divides the filters between so many sessions, from what each holds now. Every filter is in exactly one;
/// the sessions' counts differ by one at most; as few filters as possible leave the session that holds them.
/// A shared filter is in all of them: the broker divides its messages.
pub fn split(filters: &[String], sessions: usize, held: &[Vec<String>]) -> Vec<Vec<String>> {
    let sessions = sessions.max(1);
    let mut parts: Vec<Vec<String>> = vec![Vec::new(); sessions];
    let (shared, own): (Vec<&String>, Vec<&String>) =
        filters.iter().partition(|filter| filter.starts_with(SHARED));
    let holder = |filter: &String| held.iter().take(sessions).position(|part| part.contains(filter));
    let mut kept = vec![0; sessions];
    own.iter().filter_map(|filter| holder(filter)).for_each(|session| kept[session] += 1);

    // The sessions that hold most may go on holding one more than the others.
    let mut by_kept: Vec<usize> = (0..sessions).collect();
    by_kept.sort_by_key(|&session| std::cmp::Reverse(kept[session]));
    let mut room = vec![own.len() / sessions; sessions];
    by_kept.iter().take(own.len() % sessions).for_each(|&session| room[session] += 1);

    let mut homeless = Vec::new();
    for filter in own {
        match holder(filter) {
            Some(session) if parts[session].len() < room[session] => parts[session].push(filter.clone()),
            _ => homeless.push(filter.clone()),
        }
    }
    for (part, room) in parts.iter_mut().zip(room) {
        let taken = homeless.len().min(room - part.len());
        part.extend(homeless.drain(..taken));
        part.extend(shared.iter().map(|&filter| filter.clone()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn filters() -> impl Strategy<Value = Vec<String>> {
        btree_set("[a-f]{1,2}/#", 0..30).prop_map(|set| set.into_iter().collect())
    }

    fn moves(before: &[Vec<String>], after: &[Vec<String>]) -> usize {
        let moved = |(session, part): (usize, &Vec<String>)| {
            part.iter()
                .filter(|f| after.iter().enumerate().any(|(j, p)| j != session && p.contains(f)))
                .count()
        };
        before.iter().enumerate().map(moved).sum()
    }

    proptest! {
        #[test]
        fn every_filter_is_in_exactly_one_session_and_the_sessions_are_balanced(
            filters in filters(), sessions in 1..9usize, held in vec(filters(), 0..9),
        ) {
            let parts = split(&filters, sessions, &held);
            prop_assert_eq!(parts.len(), sessions);
            let mut all = parts.concat();
            all.sort();
            prop_assert_eq!(&all, &filters);
            let counts: Vec<usize> = parts.iter().map(Vec::len).collect();
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
        }

        #[test]
        fn what_is_divided_well_stays_and_a_change_of_one_filter_moves_at_most_one(
            filters in filters(), sessions in 1..9usize, other in "[g-k]/#", index in any::<prop::sample::Index>(),
        ) {
            let parts = split(&filters, sessions, &[]);
            prop_assert_eq!(moves(&parts, &split(&filters, sessions, &parts)), 0);
            let more = [filters.clone(), vec![other]].concat();
            prop_assert_eq!(moves(&parts, &split(&more, sessions, &parts)), 0);
            if !filters.is_empty() {
                let mut fewer = filters.clone();
                fewer.remove(index.index(filters.len()));
                prop_assert!(moves(&parts, &split(&fewer, sessions, &parts)) <= 1);
            }
        }

        #[test]
        fn one_session_more_takes_only_its_own_share(filters in filters(), sessions in 1..8usize) {
            let parts = split(&filters, sessions, &[]);
            let more = split(&filters, sessions + 1, &parts);
            prop_assert_eq!(moves(&parts, &more), more[sessions].len());
        }
    }

    #[test]
    fn a_shared_filter_is_in_every_session() {
        let shared = "$share/plant/a/#".to_owned();
        assert_eq!(split(std::slice::from_ref(&shared), 2, &[]), [vec![shared.clone()], vec![shared]]);
    }
}
