use std::collections::BTreeMap;

use proptest::prelude::*;

use super::plan::{Action, Found, Refresh, Seconds, Wanted, plan};
use super::rollup::{self, Width};
use crate::store::edition::{Edition, Version};

const DAY: Seconds = 86_400;

fn bare(edition: Edition) -> Found {
    Found {
        edition,
        hypertable: edition != Edition::Plain,
        compressed: false,
        columnstore: false,
        retention: None,
        horizon: None,
        compress_after: None,
        rollups: BTreeMap::new(),
    }
}

/// What the database has after an action.
fn after(found: &mut Found, action: &Action) {
    match action {
        Action::DropAfter(age) => found.retention = Some(*age),
        Action::Remember(age) => found.horizon = Some(found.horizon.map_or(*age, |known| known.min(*age))),
        Action::KeepForEver => found.retention = None,
        Action::MakeColumnstore => found.columnstore = true,
        Action::CompressAfter(age) => {
            assert!(found.columnstore, "compression is set up first");
            found.compress_after = Some(*age);
        }
        Action::StopCompressing => found.compress_after = None,
        Action::MakeRollup { width, from } => {
            assert!(
                from.is_none_or(|from| found.rollups.contains_key(&from)),
                "what it is made from is there"
            );
            assert!(found.rollups.insert(*width, None).is_none(), "it is made once");
        }
        Action::Refresh(width, refresh) => *found.rollups.get_mut(width).unwrap() = Some(*refresh),
        Action::StopRefreshing(width) => *found.rollups.get_mut(width).unwrap() = None,
    }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (
        prop::option::of(1i64..400),
        prop::option::of(1i64..30),
        prop::sample::subsequence(vec![Width(60), Width(300), Width(900), Width(3600)], 0..=4),
    )
        .prop_map(|(retention, compress, rollups)| Wanted {
            retention: retention.map(|days| days * DAY),
            compress_after: compress.map(|days| days * DAY),
            rollups,
        })
}

/// Every refresh stays where all samples are: `gone` is the least age at which some are not.
fn require_history(found: &Found, gone: Option<Seconds>) {
    for refresh in found.rollups.values().flatten() {
        if let Some(gone) = gone {
            assert!(refresh.start.is_some_and(|start| start < gone), "{refresh:?} with {gone}");
        }
    }
}

proptest! {
    #[test]
    fn whatever_follows_whatever_no_refresh_ever_reaches_behind_the_retention(
        manifests in prop::collection::vec((wanted(), 0..100 * DAY), 1..6),
    ) {
        let mut found = bare(Edition::Community(Version(2, 19, 3)));
        let mut gone = None;
        for (wanted, time) in manifests {
            found.horizon = found.horizon.map(|age| age + time);
            gone = gone.map(|age| age + time);
            let first = plan(&wanted, &found);
            prop_assert_eq!(&first.unsupported, &Vec::<String>::new());
            for action in &first.actions {
                gone = [gone, found.retention].into_iter().flatten().min();
                after(&mut found, action);
                gone = [gone, found.retention].into_iter().flatten().min();
                require_history(&found, gone);
            }
            prop_assert_eq!(plan(&wanted, &found).actions, Vec::new(), "twice changes nothing");
            prop_assert_eq!((found.retention, found.compress_after), (wanted.retention, wanted.compress_after));
            for width in &wanted.rollups {
                let refresh = found.rollups[width].unwrap();
                // The database refuses a window of less than two buckets.
                prop_assert!(refresh.start.is_none_or(|start| start - refresh.end >= 2 * width.0));
                // What a wanted one rests on is kept up to date too.
                prop_assert!(found.rollups.range(..width).all(|(_, refresh)| refresh.is_some()));
            }
        }
    }

    #[test]
    fn other_editions_get_no_policies_and_say_so(wanted in wanted()) {
        for edition in [Edition::Apache, Edition::Plain] {
            let plan = plan(&wanted, &bare(edition));
            prop_assert_eq!(plan.actions, Vec::new());
            let refused = usize::from(!wanted.rollups.is_empty()) + usize::from(wanted.compress_after.is_some());
            prop_assert_eq!(plan.unsupported.len(), refused);
        }
    }
}

#[test]
fn a_version_that_loses_late_rows_is_not_given_a_columnstore() {
    let wanted = Wanted { compress_after: Some(7 * DAY), ..Wanted::default() };
    let plan = |version| plan(&wanted, &bare(Edition::Community(version)));
    let refused = plan(Version(2, 18, 0));
    assert_eq!(refused.actions, []);
    assert_eq!(
        refused.unsupported,
        ["spec.columnstore: TimescaleDB 2.18.0 loses rows that come late; it needs 2.18.1 or newer"]
    );
    assert_eq!(plan(Version(2, 18, 1)).actions, [Action::MakeColumnstore, Action::CompressAfter(7 * DAY)]);
}

#[test]
fn a_rollup_that_is_not_wanted_any_more_keeps_what_it_holds() {
    let refresh = Some(Refresh { start: None, end: 60 });
    let mut found = bare(Edition::Community(Version(2, 19, 3)));
    found.rollups = [(Width(60), refresh), (Width(300), Some(Refresh { start: None, end: 300 }))].into();
    let plan = plan(&Wanted { rollups: vec![Width(60)], ..Wanted::default() }, &found);
    assert_eq!(plan.actions, [Action::StopRefreshing(Width(300))]);
    assert!(plan.warnings[0].contains("penstock.rollup_5m"), "{:?}", plan.warnings);
}

#[test]
fn a_longer_retention_lets_no_rollup_reach_where_samples_are_gone() {
    let (month, year) = (30 * DAY, 365 * DAY);
    let found = Found {
        retention: Some(month),
        rollups: [(Width(300), Some(Refresh { start: Some(month - 3600), end: 300 }))].into(),
        ..bare(Edition::Community(Version(2, 19, 3)))
    };
    let wanted = Wanted { retention: Some(year), rollups: vec![Width(300)], ..Wanted::default() };
    assert_eq!(plan(&wanted, &found).actions, [Action::Remember(month), Action::DropAfter(year)]);
    // It follows as the samples do.
    let later = Found { retention: Some(year), horizon: Some(month + 2 * DAY), ..found };
    let refresh = Refresh { start: Some(month + 2 * DAY - 3600), end: 300 };
    assert_eq!(plan(&wanted, &later).actions, [Action::Refresh(Width(300), refresh)]);
    let at_last = Found { horizon: Some(2 * year), ..later };
    let refresh = Refresh { start: Some(year - 3600), end: 300 };
    assert_eq!(plan(&wanted, &at_last).actions, [Action::Refresh(Width(300), refresh)]);
}

#[test]
fn a_rollup_that_is_too_wide_for_what_was_kept_waits() {
    let week = Width(7 * DAY);
    let found = Found {
        retention: Some(DAY),
        rollups: [(week, None)].into(),
        ..bare(Edition::Community(Version(2, 19, 3)))
    };
    let wanted = Wanted { rollups: vec![week], ..Wanted::default() };
    let plan = plan(&wanted, &found);
    assert_eq!(plan.actions, [Action::Remember(DAY), Action::KeepForEver]);
    assert!(
        plan.warnings[0].starts_with("spec.rollups: 7d is not kept up to date yet"),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn a_downgrade_to_apache_with_compressed_samples_is_said() {
    let found = Found { compressed: true, ..bare(Edition::Apache) };
    assert!(plan(&Wanted::default(), &found).warnings[0].contains("timescaledb.license"));
}

#[test]
fn statements_are_those_that_timescaledb_documents() {
    let refresh = Refresh { start: Some(DAY), end: 300 };
    assert_eq!(
        Action::Refresh(Width(300), refresh).statements()[1],
        "SELECT add_continuous_aggregate_policy('penstock.rollup_5m', start_offset => interval '86400 seconds', \
         end_offset => interval '300 seconds', schedule_interval => interval '300 seconds')"
    );
    let create = rollup::create(Width(3600), Some(Width(300)));
    assert!(create.starts_with("CREATE MATERIALIZED VIEW penstock.rollup_1h WITH (timescaledb.continuous"));
    assert!(create.contains("FROM penstock.rollup_5m GROUP BY 1, 2 WITH NO DATA"), "{create}");
}
