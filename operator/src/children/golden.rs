//! Pod templates as they were last time. `GOLDEN=write cargo test -p penstock-operator golden` writes them.

use std::path::PathBuf;

use penstock_crds::Manifest;

use super::tests::{NOBODY, config};
use super::*;
use crate::resolve;

fn holds(name: &str) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/children/golden");
    let text = std::fs::read_to_string(folder.join(name).with_extension("yaml")).unwrap();
    let Manifest { mut pipeline, store } = Manifest::parse(&text).unwrap();
    pipeline.metadata.namespace = Some("plant".into());
    pipeline.metadata.uid = Some("1".into());
    let resolved = resolve::pipeline(&pipeline, Some(&store), NOBODY).unwrap();
    let deployment = shard::deployment(&Owner::of(&pipeline), &resolved, &config(), 0, true).object;
    let is = format!("{:#}\n", deployment["spec"]["template"]);
    let file = folder.join(name).with_extension("json");
    if std::env::var("GOLDEN").is_ok_and(|golden| golden == "write") {
        std::fs::write(&file, &is).unwrap();
    }
    let was = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        is == was,
        "the pod template of workers is not {}: with this change an upgrade of the chart rolls all workers of \
         all users. If it must be, write the file anew (GOLDEN=write) and say so in CHANGELOG.md. It is now:\n{is}",
        file.display()
    );
}

#[test]
fn an_upgrade_restarts_no_worker_of_a_minimal_pipeline() {
    holds("minimal");
}

#[test]
fn an_upgrade_restarts_no_worker_of_a_pipeline_that_says_all() {
    holds("full");
}
