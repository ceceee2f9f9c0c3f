//! What belongs to a store: its migration, and its maintenance on a schedule.

use std::collections::BTreeSet;

use penstock_crds::TelemetryStore;
use serde_json::{Value, json};

use super::job::report;
use super::pod::Pod;
use super::{Owner, Wanted, files};
use crate::kinds::Kind;
use crate::names;
use crate::resolve::{Config, Credential};

/// The image of a store's jobs.
fn image<'a>(store: &'a TelemetryStore, config: &'a Config) -> &'a str {
    store.spec.maintenance.image.as_deref().unwrap_or(&config.worker_image)
}

/// What a migration is made by, beside the manifest: one that cannot pull its image is made anew by other Secrets.
pub fn pulled(store: &TelemetryStore, config: &Config) -> String {
    let secrets = store.spec.maintenance.image_pull_secrets.iter().map(|secret| secret.name.as_str());
    std::iter::once(image(store, config)).chain(secrets).collect::<Vec<_>>().join(" ")
}

/// Name of the migration Job. Another digest of manifest and image is another migration, and another Job.
pub fn migrate_name(store: &str, migration: &str) -> String {
    names::child(store, &format!("migrate-{}", &migration[..8.min(migration.len())]))
}

/// The jobs' ServiceAccount.
pub fn account(owner: &Owner) -> Wanted {
    let labels = names::of_store(&owner.name, "store");
    let nobody = json!({"automountServiceAccountToken": false});
    owner.child(Kind::ServiceAccount, names::child(&owner.name, "store"), &labels, nobody)
}

/// The migration.
pub fn migrate(
    owner: &Owner,
    store: &TelemetryStore,
    config: &Config,
    credentials: &BTreeSet<Credential>,
    migration: &str,
) -> Wanted {
    let labels = names::of_store(&owner.name, "migrate");
    let template = template(owner, store, config, credentials, "migrate");
    let spec = json!({"backoffLimit": 3, "template": template});
    owner.child(Kind::Job, migrate_name(&owner.name, migration), &labels, json!({"spec": spec}))
}

/// The maintenance.
pub fn maintain(
    owner: &Owner,
    store: &TelemetryStore,
    config: &Config,
    credentials: &BTreeSet<Credential>,
) -> Wanted {
    let labels = names::of_store(&owner.name, "maintain");
    let template = template(owner, store, config, credentials, "maintain");
    let spec = json!({
        "schedule": store.spec.maintenance.schedule,
        "concurrencyPolicy": "Forbid",
        "successfulJobsHistoryLimit": 1,
        "failedJobsHistoryLimit": 2,
        "jobTemplate": {
            "metadata": {"labels": labels},
            "spec": {"backoffLimit": 1, "template": template},
        },
    });
    owner.child(Kind::CronJob, names::child(&owner.name, "maintain"), &labels, json!({"spec": spec}))
}

fn template(
    owner: &Owner,
    store: &TelemetryStore,
    config: &Config,
    credentials: &BTreeSet<Credential>,
    command: &str,
) -> Value {
    let mut arguments = vec![command.to_owned()];
    arguments.extend(files::manifest_argument());
    arguments.extend(report());
    let pod = Pod {
        labels: names::of_store(&owner.name, command),
        annotations: std::collections::BTreeMap::new(),
        image: image(store, config),
        pull_policy: &config.pull_policy,
        account: names::child(&owner.name, "store"),
        arguments,
        files: names::child(&owner.name, "store"),
        credentials,
    };
    let mut template = pod.template();
    template["spec"]["restartPolicy"] = json!("Never");
    let secrets = &store.spec.maintenance.image_pull_secrets;
    if !secrets.is_empty() {
        template["spec"]["imagePullSecrets"] = json!(secrets);
    }
    template
}
