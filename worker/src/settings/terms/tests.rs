use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;
use crate::decode::sparkplug::births::{Change, Metric, Metrics, Name};
use crate::decode::{Input, Reading, Reason};

const PLANT: &str = include_str!("../../../../examples/worker.yaml");
const FILTER: &str = "{filter: \"traksense/+/+/+/telem\"}";

fn plan(generation: i64) -> String {
    format!("{{generation: {generation}, shard: 0, keys: [\"traksense/+/+/+/telem\"]}}")
}

/// A folder as Kubernetes mounts it: files are links through `..data`, which is swapped.
fn mount(folder: &Path, version: &str, manifest: &str, plan: &str) -> Sources {
    fs::create_dir(folder.join(version)).unwrap();
    for (name, text) in [("manifest.yaml", manifest), ("plan.yaml", plan)] {
        fs::write(folder.join(version).join(name), text).unwrap();
        let _ = symlink(Path::new(VERSION).join(name), folder.join(name));
    }
    symlink(version, folder.join("..next")).unwrap();
    fs::rename(folder.join("..next"), folder.join(VERSION)).unwrap();
    Sources {
        manifest: folder.join("manifest.yaml"),
        plan: Some(folder.join("plan.yaml")),
        secrets: folder.to_owned(),
        shard: 0,
    }
}

fn first(sources: &Sources) -> (Follow, watch::Sender<Arc<Terms>>) {
    let texts = sources.texts().unwrap();
    let manifest = Manifest::parse(&texts.manifest).unwrap();
    let terms = sources.terms(&texts, &manifest).unwrap();
    (Follow::new(sources.clone(), &manifest), watch::Sender::new(Arc::new(terms)))
}

#[test]
fn formats_limits_rules_and_plan_are_followed_and_a_wrong_file_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sources = mount(folder.path(), "1", PLANT, &plan(1));
    let (mut follow, terms) = first(&sources);
    let mut seen = terms.subscribe();
    assert_eq!(terms.borrow().digest, files_digest(PLANT, &plan(1)));
    assert_eq!(follow.look(&terms), None);
    assert!(!seen.has_changed().unwrap(), "the same files are no change");

    let manifest = PLANT
        .replace(FILTER, "{filter: \"traksense/+/+/+/telem\", format: SenML}")
        .replace("maxRows: 20000", "maxRows: 7")
        .replace("maxPacketSize: 1Mi", "maxPacketSize: 1Ki")
        .replace("maxQueueFill: 90", "maxQueueFill: 50")
        .replace("mode: Auto, maxSeries: 1000000", "mode: Listed, names: [acme], maxSeries: 3");
    mount(folder.path(), "2", &manifest, &plan(2));
    assert_eq!(follow.look(&terms), None);
    let now = seen.borrow_and_update().clone();
    assert_eq!(now.digest, files_digest(&manifest, &plan(2)));
    assert_eq!(
        now.work.status(),
        PlanStatus { generation: 2, keys: Some(vec!["traksense/+/+/+/telem".into()]) }
    );
    assert_eq!((now.batch.max_rows, now.max_series, now.readiness.max_queue_fill), (7, 3, 0.5));
    assert_eq!(now.formats.of(b"traksense/acme/n/d/telem"), &Reading::SenMl);
    let reason_of = |topic: &str, payload: &[u8]| {
        let input = Input { topic: topic.as_bytes(), payload, compression: None, received_at: 0, now: 0 };
        now.decoder.decode(&Reading::SenMl, &input).1.rejects[0].reason
    };
    assert_eq!(reason_of("traksense/acme/n/d/telem", &[b' '; 1025]), Reason::TooLarge);
    assert_eq!(reason_of("traksense/other/n/d/telem", b"[]"), Reason::UnknownTenant);

    for (version, manifest, plan, reason) in [
        ("3", "kind: Nothing", &*plan(3), "manifest_wrong"),
        ("4", PLANT, "{generation: 4, shard: 1, keys: []}", "plan_wrong"),
    ] {
        mount(folder.path(), version, manifest, plan);
        assert_eq!(follow.look(&terms).unwrap().0, reason);
        assert!(!seen.has_changed().unwrap(), "the last good ones are kept");
    }
    fs::remove_file(folder.path().join("4/manifest.yaml")).unwrap();
    assert_eq!(follow.look(&terms).unwrap().0, "manifest_missing");
    mount(folder.path(), "5", PLANT, &plan(5));
    assert_eq!(follow.look(&terms), None);
    assert_eq!(seen.borrow_and_update().work.generation, 5);
}

#[test]
fn manifest_and_plan_are_read_of_one_version() {
    let folder = tempfile::tempdir().unwrap();
    let sources = mount(folder.path(), "1", PLANT, &plan(1));
    // What a path leads to may be of another version by the time it is opened.
    for name in ["manifest.yaml", "plan.yaml"] {
        fs::remove_file(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name), "of another version").unwrap();
    }
    assert_eq!(sources.texts().unwrap().digest(), files_digest(PLANT, &plan(1)));
}

#[test]
fn what_births_said_is_still_known_by_new_terms() {
    let folder = tempfile::tempdir().unwrap();
    let sources = mount(folder.path(), "1", PLANT, &plan(1));
    let (mut follow, terms) = first(&sources);
    let start = terms.borrow().clone();
    mount(folder.path(), "2", PLANT, &plan(2));
    assert_eq!(follow.look(&terms), None);
    // As the holder before may teach it, after the change.
    let of = Name { group: "g".into(), node: "n".into(), device: "".into() };
    let metrics = Metrics::new(vec![Metric { alias: Some(1), name: "a".into(), datatype: 10 }]);
    start.decoder.births().learn(Change::Names { of, since: 1, metrics: Arc::new(metrics) });
    assert!(terms.borrow().decoder.births().node("g", "n").is_born(""));
}
