//! What the order of messages tells.

use super::*;

#[test]
fn a_gap_is_counted_and_asks() {
    let decoder = decoder();
    let send = |after, seq| payload(after, seq, vec![alias(1, 1.0)]);
    content(&decoder, "spBv1.0/g/NBIRTH/n", &payload(0, 0, vec![named("a", 1)]));
    for (after, seq, gap) in
        [(1, 1, false), (2, 2, false), (3, 4, true), (4, 5, false), (3, 4, false), (2, 2, false)]
    {
        let bytes = send(after, seq);
        let data = content(&decoder, "spBv1.0/g/NDATA/n", &bytes);
        assert_eq!(
            (data.samples.len(), effects(&data).gap, effects(&data).ask.is_some()),
            (1, gap, gap),
            "seq {seq}"
        );
    }
}

#[test]
fn a_message_by_a_clock_that_is_not_accepted_is_not_the_last_that_was_seen() {
    let year_9999 = 253_402_000_000_000 - BORN as u64 / 1000;
    for far in [year_9999, 1000 + 600_000 + 1] {
        let decoder = decoder();
        let send = |topic: &str, after, seq| {
            let bytes = payload(after, seq, vec![alias(1, 1.0)]);
            let content = content(&decoder, topic, &bytes);
            (reasons(&content), effects(&content))
        };
        content(&decoder, "spBv1.0/g/NBIRTH/n", &payload(0, 0, vec![named("a", 1)]));
        assert_eq!(send("spBv1.0/g/NDATA/n", 1, 1), (vec![], Effects::default()));
        let (reasons, effects) = send("spBv1.0/g/NDATA/n", far, 2);
        assert_eq!((reasons, effects.gap), (vec![(Some(0), Reason::TsWindow)], false));
        assert!(send("spBv1.0/g/NDATA/n", 2, 7).1.gap, "gaps are still seen");
        let death = send("spBv1.0/g/NDEATH/n", 3, 0).1;
        assert!(
            matches!(&death.changes[..], [Change::State { state, .. }] if state.stale_since == Some(NOW)),
            "{death:?}"
        );
        assert_eq!(send("spBv1.0/g/NDATA/n", 2000, 8).0, [(None, Reason::UnknownAlias)], "the node is dead");
    }
}
