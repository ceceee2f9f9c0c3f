//! The steps that measure: throughput and latency.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::finding::Finding;
use crate::bed::{Bed, require_identities};
use crate::report::Bars;
use crate::report::numbers::{count, duration};
use crate::source::{Plan, Source};
use crate::worker::{Metrics, Worker};

const PATIENCE: Duration = Duration::from_secs(120);
const POINTS: u32 = 10;
const DEVICES: u32 = 200;
const POLL: Duration = Duration::from_millis(20);
/// Messages a second.
const RATES: [f64; 3] = [200.0, 1000.0, 3000.0];
/// Long enough that one stall of a busy machine's disk is not a hundredth of it.
const STEADY: Duration = Duration::from_secs(20);
const LATENCY: &str = "ingest_latency_seconds";

fn plan(bed: &Bed, rate: Option<f64>, messages: u64) -> Plan {
    Plan {
        address: bed.address.clone(),
        devices: DEVICES,
        points: POINTS,
        publishers: 2,
        rate,
        backlog: messages,
        repeats: 0,
    }
}

/// Rows, and rows whose value is not what the source published.
pub async fn stored(bed: &Bed) -> Result<(i64, i64)> {
    bed.row(
        "SELECT count(*), count(*) FILTER (WHERE v_num IS DISTINCT FROM \
         right(d.name, 2)::float8 + substr(e.point, 2)::float8 / 8) \
         FROM penstock.sample JOIN penstock.series e USING (series_id) JOIN penstock.device d USING (device_id)",
    )
    .await
}

/// Step 7.
pub async fn throughput(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    let worker = bed.worker().await?;
    let (mut committed, mut rows) = (0u64, 0i64);
    for points in [10_000u64, 100_000, 1_000_000] {
        let messages = points / u64::from(POINTS);
        let started = Instant::now();
        // It publishes as many as nobody has told it are taken.
        let acknowledged = Source::fill(&plan(bed, None, messages)).await?;
        committed += acknowledged;
        worker
            .metric("all are committed", PATIENCE, |m| m.get("ingest_committed_total") >= committed as f64)
            .await?;
        let seconds = started.elapsed().as_secs_f64();
        let (now, wrong) = stored(bed).await?;
        let found = now - rows;
        rows = now;
        finding.measured(
            format!("{} points", count(points as f64)),
            format!(
                "{} of {} stored ({:.1} %) in {}, {} points/s",
                count(found as f64),
                count(points as f64),
                found as f64 * 100.0 / points as f64,
                duration(seconds),
                count(found as f64 / seconds)
            ),
        );
        finding.require(
            format!("100 % of {} points, each with its value", count(points as f64)),
            found == points as i64 && wrong == 0,
        );
    }
    finding
        .query(bed, "SELECT count(*) rows, count(DISTINCT (series_id, ts)) different FROM penstock.sample")
        .await?;
    finding.measured(
        "the original service",
        "62,830 points/s at QoS 0 of 9,990 points; of 100,000 points 56.5 % stored",
    );
    require_identities(&worker.idle().await?)
}

/// Step 8.
pub async fn latency(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    let worker = bed.worker().await?;
    let mut bars = Bars {
        title: "Latency, from device time to commit, by the database's clock".to_owned(),
        unit: "% of samples".to_owned(),
        buckets: Vec::new(),
        series: Vec::new(),
    };
    // The million rows of the step before are not to be written meanwhile.
    bed.execute("CHECKPOINT").await?;
    for rate in RATES {
        let change = steady(bed, &worker, rate).await?;
        let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|q| change.quantile(LATENCY, q));
        let name = format!("{} messages/s of {POINTS} points", count(rate));
        finding.measured(
            &name,
            format!(
                "p50 {}, p95 {}, p99 {} of {} samples; p99 of the commits alone {}",
                duration(p50),
                duration(p95),
                duration(p99),
                count(change.get(&format!("{LATENCY}_count"))),
                duration(change.quantile("ingest_commit_seconds", 0.99))
            ),
        );
        finding.require(format!("p50 at most 10 ms at {name}"), p50 <= 0.010);
        finding.require(format!("p99 at most 100 ms at {name}"), p99 <= 0.100);
        bars.add_shares(name, &change.buckets(LATENCY));
    }
    bars.trim();
    finding.bars.push(bars);
    let metrics = worker.idle().await?;
    finding
        .evidence("ingest_latency_negative_total", metrics.get("ingest_latency_negative_total").to_string());
    require_identities(&metrics)
}

/// What the worker counts in a stretch of steady publishing.
async fn steady(bed: &Bed, worker: &Worker, rate: f64) -> Result<Metrics> {
    let begin = worker.metrics().await?.get("ingest_committed_total");
    let source = Source::start(&plan(bed, Some(rate), u64::MAX));
    let follow = async |length: Duration| -> Result<Metrics> {
        let started = Instant::now();
        loop {
            let metrics = worker.metrics().await?;
            let taken = metrics.get("ingest_committed_total") - begin;
            source.counts.taken.store(taken as u64, Ordering::Relaxed);
            if started.elapsed() > length {
                return Ok(metrics);
            }
            tokio::time::sleep(POLL * 10).await;
        }
    };
    let before = follow(Duration::from_secs(1)).await?;
    let after = follow(STEADY).await?;
    let acknowledged = source.finish()? as f64;
    worker
        .metric("all are committed", PATIENCE, |m| m.get("ingest_committed_total") - begin >= acknowledged)
        .await?;
    Ok(after.since(&before))
}
