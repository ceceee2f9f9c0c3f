//! What runs to its end and leaves a report: `migrate`, `maintain`, `retire`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::report::{Failure, Outcome, RetireReport, StoreReport, termination_message};
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::retire::RetireError;
use crate::settings::{SettingsError, Sources};
use crate::shard::{AssemblyError, Shard};
use crate::store::lease::Me;
use crate::store::maintain;
use crate::store::schema::{self, SchemaError};

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Its files.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The schema.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The worker's parts.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// The sessions' end.
    #[error(transparent)]
    Retire(#[from] RetireError),
    /// The report cannot be left.
    #[error("--report {path}: {source}")]
    Report {
        /// Where.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl JobError {
    /// A bounded word for why.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Settings(error) => error.reason(),
            Self::Schema(error) => error.reason(),
            Self::Assembly(_) => "manifest_wrong",
            Self::Retire(error) => error.reason(),
            Self::Report { .. } => "report_failed",
        }
    }
}

/// Makes the schema, or brings it up to date, and applies the store's policies.
pub async fn migrate(sources: &Sources) -> Result<StoreReport, JobError> {
    let store = sources.store()?;
    let owner = sources.database(&store.spec.migration)?;
    let worker = sources.database(&store.spec.database)?;
    Ok(schema::migrate(&owner, Some(worker.get_username()), &store.spec).await?)
}

/// Applies the store's policies and removes what is too old.
pub async fn maintain(sources: &Sources) -> Result<StoreReport, JobError> {
    let store = sources.store()?;
    let owner = sources.database(&store.spec.migration)?;
    Ok(maintain::maintain(&owner, &store.spec).await?)
}

/// Ends a shard's sessions for good.
pub async fn retire(
    sources: &Sources,
    me: Me,
    plan: Option<i64>,
    idle: Option<Duration>,
    writers: &Handle,
) -> Result<RetireReport, JobError> {
    // An instance of its own, so that it is never mistaken for the worker of the same machine.
    let me = Me { instance: format!("retire-{}", me.incarnation), ..me };
    let settings = sources.settings()?;
    let (_access, access) = watch::channel(settings.access.clone());
    let (_terms, terms) = watch::channel(Arc::clone(&settings.terms));
    let shard = Shard::new(settings, (access, terms), me, writers.clone())?;
    let report = shard.retire(plan, idle).await;
    shard.close_traces().await;
    Ok(report?)
}

/// Runs a job, prints its report, and leaves how it ended in a file that Kubernetes reads.
pub async fn reported<Report: Serialize>(
    file: Option<&Path>,
    job: impl Future<Output = Result<Report, JobError>>,
) -> Result<(), JobError> {
    let leave = |message: String| match file {
        Some(path) => std::fs::write(path, message)
            .map_err(|source| JobError::Report { path: path.display().to_string(), source }),
        None => Ok(()),
    };
    match job.await {
        Ok(report) => {
            println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
            leave(termination_message(&report))
        }
        Err(error) => {
            let failure = Failure { reason: error.reason().to_owned(), message: error.to_string() };
            leave(termination_message(&Outcome::<Report>::Failed { error: failure }))?;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn how_a_job_ended_is_left_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("termination-log");
        let done = StoreReport { edition: "PostgreSQL".to_owned(), ..StoreReport::default() };
        reported(Some(&file), async { Ok(done.clone()) }).await.unwrap();
        let read = || serde_json::from_slice::<Outcome<StoreReport>>(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(read(), Outcome::Done(done));

        let sources = Sources {
            manifest: folder.path().join("plant.yaml"),
            plan: None,
            secrets: folder.path().to_owned(),
            shard: 0,
        };
        std::fs::write(&sources.manifest, include_str!("../../examples/worker.yaml")).unwrap();
        reported(Some(&file), migrate(&sources)).await.unwrap_err();
        let Outcome::Failed { error } = read() else { panic!("a failure is left") };
        assert_eq!(error.reason, "secret_missing");
        assert!(error.message.contains("timescale/owner-url"), "{}", error.message);
    }
}
