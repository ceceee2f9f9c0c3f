//! A fleet that publishes while a scenario does harm, and the comparison afterwards.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use tokio::task::JoinHandle;

use crate::bed::{Bed, require_identities};
use crate::compare::{Comparison, compare};
use crate::fleet::{Entry, Fleet};
use crate::publisher::Progress;
use crate::worker::{Metrics, Worker};

/// A fleet that publishes in the background.
pub struct Load {
    fleet: Fleet,
    /// How far it is.
    pub progress: Arc<Progress>,
    task: JoinHandle<Result<Vec<Entry>>>,
}

impl Load {
    /// Starts a fleet.
    pub fn start(fleet: Fleet) -> Self {
        let progress = Arc::new(Progress::default());
        let task = tokio::spawn({
            let (fleet, progress) = (fleet.clone(), Arc::clone(&progress));
            async move { fleet.run(progress).await }
        });
        Self { fleet, progress, task }
    }

    /// Starts a mixed fleet at a rate, for as long as the scenario lasts.
    pub fn mixed(bed: &Bed, rate: f64) -> Self {
        Self::start(Fleet { mixed: true, ..Fleet::steady(&bed.address, rate, 1_000_000) })
    }

    /// Waits until all is published; what it was.
    pub async fn ledger(self) -> Result<Vec<Entry>> {
        self.task.await?
    }

    /// Ends publishing.
    pub async fn stop(self) -> Result<()> {
        self.progress.stop.store(true, Ordering::SeqCst);
        self.task.await?.map(drop)
    }

    /// Ends publishing, waits for the worker to store all, and compares.
    pub async fn finish(self, bed: &Bed, worker: &Worker) -> Result<(Comparison, Metrics)> {
        self.progress.stop.store(true, Ordering::SeqCst);
        let ledger = self.task.await??;
        let metrics = worker.idle().await?;
        let comparison = compare(&bed.database.admin_url, &ledger, self.fleet.points).await?;
        comparison.require_exact()?;
        require_identities(&metrics)?;
        Ok((comparison, metrics))
    }
}
