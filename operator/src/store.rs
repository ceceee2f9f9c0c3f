//! The reconcile of a store: its migration, its maintenance, and what their jobs report.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use penstock_crds::TelemetryStore;
use penstock_crds::plan::files_digest;
use penstock_crds::report::StoreReport;
use penstock_crds::store::TelemetryStoreStatus;
use serde_json::json;

use crate::apply::MANAGER;
use crate::caches::Children;
use crate::children::{Owner, files, store as build};
use crate::conditions::{self, Say};
use crate::context::{Context, Shared, now};
use crate::error::Error;
use crate::kinds::Kind;
use crate::names;
use crate::observe::{failed_for, failure, has_condition, outcome, problem};
use crate::resolve;

/// Until the next look, while a migration runs and at rest. All else comes by triggers.
const BUSY: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_mins(5);
/// A migration that failed for good is tried again after so long.
const MIGRATE_AGAIN: Duration = Duration::from_secs(20);

/// Brings a store one step nearer to what its spec asks for.
pub async fn reconcile(store: Arc<TelemetryStore>, ctx: Shared) -> Result<Action, Error> {
    let paused = store.annotations().get(names::PAUSED).is_some_and(|paused| paused == "true");
    if paused || store.metadata.deletion_timestamp.is_some() {
        tell_pipelines(&store, &ctx);
        return Ok(Action::await_change());
    }
    let owner = Owner::of(&*store);
    let children = ctx.caches.of(names::STORE, &owner.namespace, &owner.name).map_err(Error::Unreadable)?;
    let before = store.status.clone().unwrap_or_default();
    let mut next = before.clone();
    next.observed_generation = store.metadata.generation;
    let result = match resolve::store(&store) {
        Err(fault) => Ok(Say::that(false, fault.reason(), fault.to_string())),
        Ok((manifest, credentials)) => {
            let migration = files_digest(&manifest, &build::pulled(&store, &ctx.config));
            let mut wanted = vec![
                files::store(&owner, &manifest),
                build::account(&owner),
                build::maintain(&owner, &store, &ctx.config, &credentials),
            ];
            let name = build::migrate_name(&owner.name, &migration);
            let job = children.get(&(Kind::Job, name.clone()));
            let again = job.and_then(|job| failed_for(job)).is_some_and(|time| time > MIGRATE_AGAIN);
            let done = next.migrated.as_ref() == Some(&migration);
            if !done && job.is_none() {
                wanted.push(build::migrate(&owner, &store, &ctx.config, &credentials, &migration));
            }
            let say = look(&mut next, &children, job.map(|job| &**job), &migration);
            apply(&ctx, &owner, &children, &wanted, (!again).then_some(name)).await.map(|()| say)
        }
    };
    let (say, refused) = match result {
        Ok(say) => (say, None),
        Err(error) => match error.blocked() {
            // The schema that was made before serves meanwhile.
            Some((reason, why)) => (Say::that(next.migrated.is_some(), reason, why), Some(error)),
            None => return Err(error),
        },
    };
    let busy = say.reason != "ready";
    maintained(&mut next, &children);
    conditions::set(&mut next.conditions, "SchemaReady", &say, store.metadata.generation, now());
    if next != before {
        put_status(&store, &ctx, &next).await?;
        ctx.tell(&*store, &before.conditions, &next.conditions, "SchemaReady").await;
    }
    tell_pipelines(&store, &ctx);
    match refused {
        // Less and less often: each try is a call.
        Some(error @ Error::Api(_)) => Err(error),
        _ => Ok(Action::requeue(if busy { BUSY } else { REST })),
    }
}

async fn apply(
    ctx: &Context,
    owner: &Owner,
    children: &Children,
    wanted: &[crate::children::Wanted],
    migrate: Option<String>,
) -> Result<(), Error> {
    for wanted in wanted {
        ctx.applier.ensure(&owner.namespace, wanted, children).await?;
    }
    // Jobs of earlier migrations; those of the schedule belong to their CronJob.
    let is_old = |object: &DynamicObject| {
        object.labels().get(names::COMPONENT).is_some_and(|component| component == "migrate")
            && Some(object.name_any()) != migrate
    };
    for ((kind, _), object) in
        children.iter().filter(|((kind, _), object)| *kind == Kind::Job && is_old(object))
    {
        ctx.applier.delete(*kind, object).await?;
    }
    Ok(())
}

/// What the migration came to.
fn look(
    status: &mut TelemetryStoreStatus,
    children: &Children,
    job: Option<&DynamicObject>,
    migration: &str,
) -> Say {
    let pods = pods(children, "migrate");
    let of_job = |pod: &&Arc<DynamicObject>| {
        job.is_some_and(|job| pod.labels().get("batch.kubernetes.io/job-name") == Some(&job.name_any()))
    };
    if let Some(job) = job.filter(|job| has_condition(job, "Complete"))
        && status.migrated.as_deref() != Some(migration)
    {
        if let Some(report) = pods.iter().filter(of_job).find_map(|pod| outcome::<StoreReport>(pod)) {
            take_in(status, report);
        }
        tracing::info!(job = job.name_any(), "the schema is up to date");
        status.migrated = Some(migration.to_owned());
    }
    if status.migrated.as_deref() == Some(migration) {
        let version = status.schema_version.map(|version| format!(" {version}")).unwrap_or_default();
        return Say::that(
            true,
            "ready",
            format!("schema{version} on {}", status.edition.as_deref().unwrap_or("the database")),
        );
    }
    // Of a newer image or policy: the schema before serves meanwhile.
    let holds = status.migrated.is_some();
    let own = || pods.iter().filter(of_job);
    let failed = own().find_map(|pod| failure(pod)).map(|failure| (failure.reason, failure.message));
    match failed.or_else(|| own().find_map(|pod| problem(pod))) {
        Some((reason, why)) => Say::that(holds, reason, why),
        None => Say::that(holds, "migrating", "the migration runs"),
    }
}

/// What the last maintenance told.
fn maintained(status: &mut TelemetryStoreStatus, children: &Children) {
    let last = pods(children, "maintain").into_iter().find_map(|pod| {
        let ended = &pod.data["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"];
        Some((ended.as_str()?.to_owned(), outcome::<StoreReport>(&pod)?))
    });
    if let Some((at, report)) = last
        && status.maintained.as_ref() != Some(&at)
    {
        status.maintained = Some(at);
        take_in(status, report);
    }
}

/// Pods of a component, the newest first.
fn pods(children: &Children, component: &str) -> Vec<Arc<DynamicObject>> {
    let mut pods: Vec<_> = children
        .iter()
        .filter(|((kind, _), pod)| {
            *kind == Kind::Pod && pod.labels().get(names::COMPONENT).is_some_and(|of| of == component)
        })
        .map(|(_, pod)| Arc::clone(pod))
        .collect();
    pods.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp()));
    pods
}

fn take_in(status: &mut TelemetryStoreStatus, report: StoreReport) {
    let timescale = report.timescaledb.map(|version| format!(" {version}")).unwrap_or_default();
    status.edition = Some(format!("{}{timescale} on PostgreSQL {}", report.edition, report.server));
    status.schema_version = report.schema_version;
    status.unsupported = report.unsupported;
    status.warnings = report.warnings;
    status.size = report.size_bytes.map(size);
}

fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = (bytes.max(1).ilog2() / 10).min(4);
    format!("{} {}", bytes >> (10 * power), units[power as usize])
}

async fn put_status(store: &TelemetryStore, ctx: &Context, next: &TelemetryStoreStatus) -> Result<(), Error> {
    let api: Api<TelemetryStore> =
        Api::namespaced(ctx.client.clone(), &store.namespace().unwrap_or_default());
    let object = json!({
        "apiVersion": TelemetryStore::api_version(&()),
        "kind": TelemetryStore::kind(&()),
        "metadata": {"name": store.name_any()},
        "status": next,
    });
    let parameters = PatchParams::apply(&format!("{MANAGER}-status")).force();
    api.patch_status(&store.name_any(), &parameters, &Patch::Apply(object)).await?;
    ctx.metrics.wrote("TelemetryStore", "status");
    Ok(())
}

/// Pipelines speak of their store: of its spec, and of what its conditions say.
fn tell_pipelines(store: &TelemetryStore, ctx: &Context) {
    let conditions = store.status.as_ref().map(|status| &status.conditions);
    let said = json!([store.metadata.generation, conditions]).to_string();
    if !ctx.told.is_new(store.uid().unwrap_or_default(), said) {
        return;
    }
    let namespace = store.namespace().unwrap_or_default();
    for pipeline in ctx.all_pipelines() {
        if pipeline.namespace().as_deref() == Some(&namespace)
            && pipeline.spec.sink.store_ref.name == store.name_any()
        {
            ctx.triggers.pipeline(&namespace, &pipeline.name_any());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_whose_pod_cannot_start_says_why() {
        let named = |name: &str| json!({"name": name, "namespace": "works"});
        let job: DynamicObject =
            serde_json::from_value(json!({"metadata": named("main-migrate-1"), "status": {"active": 1}}))
                .unwrap();
        let mut pod = json!({"metadata": named("main-migrate-1-x")});
        pod["metadata"]["labels"] = json!({
            names::COMPONENT: "migrate", "batch.kubernetes.io/job-name": "main-migrate-1",
        });
        let waiting = json!({"reason": "ErrImagePull", "message": "no such image"});
        pod["status"] = json!({"containerStatuses": [{"state": {"waiting": waiting}}]});
        let pod: DynamicObject = serde_json::from_value(pod).unwrap();
        let children = Children::from([((Kind::Pod, pod.name_any()), Arc::new(pod))]);
        let say = look(&mut TelemetryStoreStatus::default(), &children, Some(&job), "1");
        assert_eq!((say.holds, &*say.reason, &*say.message), (Some(false), "ErrImagePull", "no such image"));
    }
}
