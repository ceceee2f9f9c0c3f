//! Step 10: more is offered than the database can take.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::finding::Finding;
use super::load::stored;
use crate::bed::{Bed, require_identities};
use crate::proxy::Proxy;
use crate::report::numbers::{count, duration};
use crate::report::{Mark, Plot, Series};
use crate::source::{Plan, Source};
use crate::worker::{Metrics, Worker};

/// Messages a second that are offered, and how long. Where the broker does not take so many, publishers
/// wait for its acknowledgements, and more and more are due.
const OFFERED: f64 = 60_000.0;
const LENGTH: Duration = Duration::from_secs(30);
/// Bytes a second that pass to the database meanwhile: some thousand rows.
const THROTTLED: u64 = 500_000;
const PATIENCE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(250);
/// receiveMaximum of the example.
const WINDOW: f64 = 1000.0;
/// What the worker may need for a full window of such messages.
const MEMORY: u64 = 120 << 20;

/// What is seen at a time.
struct Moment {
    at: f64,
    offered: f64,
    acknowledged: f64,
    metrics: Metrics,
    memory: f64,
}

/// Step 10.
pub async fn backpressure(bed: &mut Bed, finding: &mut Finding) -> Result<()> {
    let proxy = Proxy::start(bed.database.address()?).await?;
    bed.reach_database_through(proxy.port)?;
    let worker = bed.worker().await?;
    let plan = Plan {
        address: bed.address.clone(),
        devices: 1000,
        points: 1,
        publishers: 4,
        rate: Some(OFFERED),
        backlog: u64::MAX,
        repeats: 0,
    };
    proxy.throttle(THROTTLED);
    let (began, source) = (Instant::now(), Source::start(&plan));
    let counts = Arc::clone(&source.counts);
    let mut moments = Vec::new();
    let mut watch = async |until: &dyn Fn(&Moment) -> bool| -> Result<()> {
        loop {
            let moment = look(&worker, began, &counts).await?;
            let done = until(&moment);
            moments.push(moment);
            anyhow::ensure!(began.elapsed() < PATIENCE, "not drained within {PATIENCE:?}");
            if done {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    };
    watch(&|moment| moment.at > LENGTH.as_secs_f64()).await?;
    let offered = counts.offered() as f64 / began.elapsed().as_secs_f64();
    let acknowledged = tokio::task::spawn_blocking(move || source.finish()).await?? as f64;
    let held = acknowledged - worker.metrics().await?.get("ingest_committed_total");
    let published = began.elapsed().as_secs_f64();
    proxy.throttle(0);
    let freed = Instant::now();
    watch(&|moment| moment.metrics.get("ingest_committed_total") >= acknowledged).await?;
    let drained = freed.elapsed().as_secs_f64();

    let most = |value: &dyn Fn(&Moment) -> f64| moments.iter().map(value).fold(0.0, f64::max);
    let unacked = most(&|moment| moment.metrics.get("ingest_mqtt_unacked"));
    let in_flight = most(&|moment| moment.metrics.get("ingest_in_flight"));
    let peak = worker.peak_memory()?;
    let metrics = worker.idle().await?;
    finding.measured("offered for 30 s", format!("{} messages/s", count(offered)));
    let accepted = format!("{} messages, {}/s", count(acknowledged), count(acknowledged / published));
    finding.measured("accepted by the broker", accepted);
    finding.measured("held by the broker when the database was freed", format!("{} messages", count(held)));
    finding.measured(
        "most unacknowledged, and most in flight",
        format!("{} and {}", count(unacked), count(in_flight)),
    );
    finding.measured("worker's peak memory", format!("{} MiB", peak >> 20));
    finding.measured("drained after", format!("{}, {} messages/s", duration(drained), count(held / drained)));
    let (rows, wrong) = stored(bed).await?;
    finding.measured("stored", format!("{} of {}", count(rows as f64), count(acknowledged)));
    finding.require("more than 50,000 messages a second were offered", offered > 50_000.0);
    finding.require("the database was the limit: the broker held most", held > acknowledged / 2.0);
    finding.require(
        "unacknowledged deliveries stayed within receiveMaximum, those in hand within twice that",
        // What was acknowledged a moment ago may still be in hand, besides what came for it.
        unacked <= WINDOW && in_flight <= 2.0 * WINDOW,
    );
    finding.require(format!("the worker's memory stayed below {} MiB", MEMORY >> 20), peak < MEMORY);
    finding.require(
        "all that was acknowledged is stored, once, with its value",
        rows == acknowledged as i64 && wrong == 0,
    );
    finding.require("both accounting identities hold", require_identities(&metrics).is_ok());
    finding.plots = plots(&moments, published, published + drained);
    Ok(())
}

async fn look(worker: &Worker, began: Instant, counts: &crate::source::Counts) -> Result<Moment> {
    Ok(Moment {
        metrics: worker.metrics().await?,
        at: began.elapsed().as_secs_f64(),
        offered: counts.offered() as f64,
        acknowledged: counts.acknowledged.load(Ordering::Relaxed) as f64,
        memory: worker.memory()? as f64 / f64::from(1 << 20),
    })
}

fn plots(moments: &[Moment], freed: f64, drained: f64) -> Vec<Plot> {
    let series = |name: &str, value: &dyn Fn(&Moment) -> f64| Series {
        name: name.to_owned(),
        points: moments.iter().map(|moment| (moment.at, Some(value(moment)))).collect(),
    };
    let rate = |name: &str, value: &dyn Fn(&Moment) -> f64| Series {
        name: name.to_owned(),
        points: moments
            .windows(5)
            .step_by(2)
            .filter_map(|w| Some((w.first()?, w.last()?)))
            // What waits when publishers stop is offered no longer.
            .map(|(a, b)| (b.at, Some((value(b) - value(a)).max(0.0) / (b.at - a.at))))
            .collect(),
    };
    let committed = |moment: &Moment| moment.metrics.get("ingest_committed_total");
    let marks = vec![
        Mark { at: 0.0, until: Some(freed), label: "the database is throttled".to_owned() },
        Mark { at: drained, until: None, label: "drained".to_owned() },
    ];
    let plot = |title, unit, series| Plot::new(title, unit, &marks, series);
    vec![
        plot(
            "Rate",
            "messages/s",
            vec![
                rate("offered", &|moment| moment.offered),
                rate("accepted by the broker", &|moment| moment.acknowledged),
                rate("committed", &committed),
            ],
        ),
        plot(
            "Held by the broker",
            "messages",
            vec![series("accepted and not committed", &|m| (m.acknowledged - committed(m)).max(0.0))],
        ),
        plot(
            "In hand of the worker",
            "messages",
            vec![series("unacknowledged", &|m| m.metrics.get("ingest_mqtt_unacked"))],
        ),
        plot("The worker's memory", "MiB", vec![series("resident", &|moment| moment.memory)]),
    ]
}
