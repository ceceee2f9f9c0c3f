//! A pipeline that changes under load, and the notes that are taken of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};

use super::scale::stored;
use crate::bed::Bed;
use crate::plant::Plant;
use crate::record::Recorder;
use crate::scenarios::load::Load;

/// Messages a second.
pub const RATE: f64 = 200.0;

/// Takes notes of a pipeline under load.
pub fn record(bed: &Bed, plant: &Arc<Plant>, load: &Load, title: &str) -> Recorder {
    let plant = Arc::downgrade(plant);
    let ready = move || {
        let plant = plant.upgrade();
        async move {
            let pipeline = plant?.pipeline().await.ok()?;
            u32::try_from(pipeline["status"]["readyReplicas"].as_u64()?).ok()
        }
    };
    Recorder::start(title, bed.database.admin_url.clone(), load.progress.clone(), ready)
}

/// A pipeline under load.
pub struct Run {
    /// The pipeline.
    pub plant: Arc<Plant>,
    /// What was seen.
    pub recorder: Recorder,
    load: Load,
}

impl Run {
    /// Begins to publish.
    pub fn start(bed: &Bed, plant: &Arc<Plant>, title: &str) -> Self {
        let load = Load::mixed(bed, RATE);
        let recorder = record(bed, plant, &load, title);
        Self { plant: Arc::clone(plant), recorder, load }
    }

    /// Scales, and waits until it is done.
    pub async fn scale(&self, replicas: u32) -> Result<()> {
        let mark = self.recorder.mark(&format!("to {replicas}"));
        self.plant.scale(replicas)?;
        self.plant.ready(replicas).await.with_context(|| self.plant.logs())?;
        self.recorder.over(mark);
        Ok(())
    }

    /// Ends the load, compares row by row, adds up what each worker counted, and keeps the notes.
    pub async fn finish(self, bed: &Bed, name: &str) -> Result<()> {
        self.load.progress.stop.store(true, Ordering::SeqCst);
        // Not of the time when nothing is published.
        let longest = self.recorder.so_far().longest_lag();
        let ledger = self.load.ledger().await?;
        stored(bed, &ledger).await.with_context(|| self.plant.logs())?;
        self.plant.identities().await?;
        self.recorder.found("messages published and stored exactly once", ledger.len().to_string());
        self.recorder.found("longest delay of a device's newest row", format!("{longest:.1} s"));
        self.recorder.keep(name)?;
        eprintln!("  {} messages, longest delay {longest:.1} s", ledger.len());
        Ok(())
    }
}
