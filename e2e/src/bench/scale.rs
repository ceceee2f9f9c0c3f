//! What becomes of the rate with many series and with many duplicates, and what a full window needs.

use std::time::Duration;

use anyhow::{Context, Result};

use super::measure::{self, Run};
use super::{Bench, RECEIVE_MAXIMUM, plan};
use crate::bed::Bed;
use crate::fleet::TENANTS;
use crate::source::{Plan, Source};
use crate::worker::Worker;

const LENGTH: Duration = Duration::from_secs(8);
const PATIENCE: Duration = Duration::from_secs(120);
const POINTS: u32 = 10;
/// Of ten messages, so many come again.
const REPEATS: u64 = 3;

impl Bench {
    /// The worker with so many active series of ten points a device, of which each has a row already.
    pub async fn series(&self, series: u32) -> Result<Run> {
        let mut bed = self.bed("bench-series").await?;
        let devices = series / POINTS;
        bed.migrate().await?;
        preload(&bed, devices).await?;
        let worker = throughput_worker(&mut bed).await?;
        let cached = move |m: &crate::worker::Metrics| m.get("ingest_series_cached") >= f64::from(series);
        worker.metric("the series are cached", PATIENCE, cached).await?;
        let plan = Plan { devices, ..plan(POINTS) };
        let run = measure::run(&mut bed, &worker, self.database()?, &plan, LENGTH)
            .await
            .with_context(|| bed.logs())?;
        worker.stop(Duration::from_secs(30)).await?;
        println!(
            "  {series} series: {:.0} points/s, peak memory {} MiB",
            run.rate.points_a_second(),
            run.peak_memory >> 20
        );
        Ok(run)
    }

    /// The worker while three of ten messages come again.
    pub async fn storm(&self) -> Result<Run> {
        let mut bed = self.bed("bench-storm").await?;
        let worker = throughput_worker(&mut bed).await?;
        let plan = Plan { repeats: REPEATS, ..plan(POINTS) };
        let run = measure::run(&mut bed, &worker, self.database()?, &plan, LENGTH)
            .await
            .with_context(|| bed.logs())?;
        worker.stop(Duration::from_secs(30)).await?;
        println!(
            "  with duplicates: {:.0} messages/s, {:.0} points stored/s",
            run.rate.messages_a_second(),
            run.rate.points_a_second()
        );
        Ok(run)
    }

    /// Peak memory of an idle worker, and of one with a full window of 1,000, in bytes.
    pub async fn memory(&self) -> Result<[u64; 2]> {
        let mut bed = self.bed("bench-memory").await?;
        let worker = bed.worker().await?;
        let idle = worker.peak_memory()?;
        // Writers wait for a lock, so that the window fills.
        let held = bed.hold_writers().await?;
        let messages =
            Source::fill(&Plan { address: bed.address.clone(), backlog: 5000, ..plan(POINTS) }).await?;
        worker.metric("the window is full", PATIENCE, |m| m.get("ingest_mqtt_unacked") >= 1000.0).await?;
        held.release().await?;
        worker
            .metric("all is stored", PATIENCE, |m| m.get("ingest_committed_total") >= messages as f64)
            .await?;
        let full = worker.peak_memory()?;
        worker.stop(Duration::from_secs(30)).await?;
        println!("  peak memory: {} MiB idle, {} MiB with a full window", idle >> 20, full >> 20);
        Ok([idle, full])
    }
}

/// A worker with the window of the throughput runs.
pub async fn throughput_worker(bed: &mut Bed) -> Result<Worker> {
    let window = format!("receiveMaximum: {RECEIVE_MAXIMUM}");
    bed.worker_with(|text| text.replace("receiveMaximum: 1000", &window)).await
}

/// Devices with their series, each with one row an hour old.
async fn preload(bed: &Bed, devices: u32) -> Result<()> {
    bed.execute(&format!(
        "INSERT INTO penstock.tenant (name, series_count) SELECT 't' || n, {devices} * {POINTS} / {TENANTS} FROM generate_series(0, {TENANTS} - 1) n;
         INSERT INTO penstock.device (tenant_id, site, name)
           SELECT tenant_id, 's1', 'dev-' || lpad(n::text, 5, '0') FROM generate_series(0, {devices} - 1) n
           JOIN penstock.tenant t ON t.name = 't' || n % {TENANTS};
         INSERT INTO penstock.series (device_id, point, unit)
           SELECT device_id, 'p' || p, 'celsius' FROM penstock.device, generate_series(0, {POINTS} - 1) p ORDER BY 1, p;
         INSERT INTO penstock.sample (ts, series_id, v_num) SELECT now() - interval '1 hour', series_id, 0
           FROM penstock.series ORDER BY series_id;
         ANALYZE penstock.series; ANALYZE penstock.device"
    ))
    .await
}
