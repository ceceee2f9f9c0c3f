use std::collections::BTreeSet;

use super::*;

fn wish() -> Wish {
    Wish::new(BTreeSet::from(["a/#".to_owned()]), false, 1, false)
}

fn shard(pod: Option<PodView>) -> ShardView {
    ShardView {
        shard: 0,
        role: Role::Active,
        keys: 1,
        client_id: "plant-0".to_owned(),
        pod,
        unmade: None,
        report: None,
        settled: false,
        rollout: Part::None,
        retiring: false,
        retire_failure: None,
    }
}

fn said(wish: &Wish, shards: &[ShardView], blocked: Blocked) -> IngestPipelineStatus {
    let facts = Facts {
        name: "plant",
        generation: Some(1),
        wish,
        replicas: 1,
        scaling: None,
        shards,
        plan: (1, false),
        blocked,
        schema: Say::that(true, "ready", "schema 1"),
    };
    let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
    status(&IngestPipelineStatus::default(), &facts, &now)
}

fn condition<'a>(status: &'a IngestPipelineStatus, kind: &str) -> (&'a str, &'a str) {
    let condition = conditions::get(&status.conditions, kind).unwrap();
    (&condition.status, &condition.reason)
}

#[test]
fn a_shard_that_has_no_pod_says_why_none_is_made() {
    let failed = ("FailedCreate".to_owned(), "exceeded quota: small".to_owned());
    let status = said(&wish(), &[ShardView { unmade: Some(failed), ..shard(None) }], None);
    assert_eq!(condition(&status, "Ready"), ("False", "FailedCreate"));
    assert_eq!(status.shards[0].reason.as_deref(), Some("FailedCreate"));
    assert_eq!(condition(&said(&wish(), &[shard(None)], None), "Ready"), ("False", "starting"));
}

#[test]
fn what_blocks_is_told_before_that_shards_start_and_after_what_is_wrong_with_one() {
    let blocked = || Some(("api_forbidden".to_owned(), "exceeded quota: small".to_owned()));
    let status = said(&wish(), &[shard(None)], blocked());
    assert_eq!(condition(&status, "Ready"), ("False", "api_forbidden"));
    assert_eq!(condition(&status, "Stalled"), ("True", "api_forbidden"));
    let problem = Some(("ImagePullBackOff".to_owned(), "no such image".to_owned()));
    let pod = PodView { problem, ..PodView::default() };
    assert_eq!(
        condition(&said(&wish(), &[shard(Some(pod))], blocked()), "Ready"),
        ("False", "ImagePullBackOff")
    );
}

#[test]
fn a_pipeline_that_is_deleted_is_not_suspended_and_its_end_is_told_when_no_session_is_left() {
    let ending = Wish { ending: true, ..Wish::new(BTreeSet::new(), true, 0, false) };
    let leaving = ShardView { role: Role::Leaving, ..shard(None) };
    let status = said(&ending, &[leaving], None);
    assert_eq!(condition(&status, "Suspended"), ("False", "running"));
    assert_eq!(condition(&status, "Ready"), ("False", "ending"));
    assert!(!has_ended(&status));
    assert!(has_ended(&said(&ending, &[], None)));
    assert!(!has_ended(&said(&wish(), &[], None)) && !has_ended(&IngestPipelineStatus::default()));
}

#[test]
fn a_number_that_grows_in_a_text_is_no_reason_to_write_a_status() {
    let stuck = |why: &str| {
        let report = WorkerStatus::not_ready("queue_stuck", why.to_owned());
        said(&wish(), &[ShardView { report: Some(report), ..shard(Some(PodView::default())) }], None)
    };
    let before = stuck("its oldest delivery has waited 31.5 s for a commit");
    let later = stuck("its oldest delivery has waited 33.0 s for a commit");
    assert!(before != later && !differs(&before, &later), "{before:?}");
    assert!(differs(&before, &stuck("its newest delivery has waited 31.5 s for a commit")));
    assert!(differs(&stuck("no such image: penstock:0.1.0"), &stuck("no such image: penstock:0.1.1")));
    assert!(differs(&stuck("3 messages"), &stuck("4 messages")));
}
