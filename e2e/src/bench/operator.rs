//! The operator with up to 1,000 pipelines: a real API server, etcd and controller manager; kubelets and
//! workers are played.

mod calls;
mod report;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use penstock_crds::{IngestPipeline, TelemetryStore};
use rustix::process::Signal;

use self::calls::Calls;
use self::report::{Applied, Cold, Report, Rest};
use crate::cluster::Cluster;
use crate::operator;
use crate::stack::{self, free_port, process::Process};
use crate::standin::{self, StandIn};
use crate::wait::until_async;
use crate::worker::{Metrics, Pages, cpu_seconds, memory_of};

const SIZES: [u32; 3] = [1, 100, 1000];
/// Pipelines that are created at a time.
const AT_ONCE: usize = 16;
/// A machine that others use meanwhile takes minutes for 1,000.
const PATIENCE: Duration = Duration::from_secs(600);
/// Nothing is on its way any more when nothing was done for so long.
const CALM: Duration = Duration::from_secs(2);
const MINUTE: Duration = Duration::from_secs(60);
/// How often progress is shown.
const SHOWN: Duration = Duration::from_secs(5);

/// Measures, prints, and writes target/report/operator-bench.json.
pub async fn run() -> Result<()> {
    println!("1/4 a control plane without nodes");
    let cluster = Cluster::start_without_nodes()?;
    cluster.define_kinds()?;
    let client = standin::client(cluster.kubeconfig()).await?;
    let stand_in = StandIn::start(client.clone()).await?;
    let bench = Bench { cluster, client };
    let mut applied = Vec::new();
    let mut last = None;
    for size in SIZES {
        println!("2/4 {size} pipelines");
        // The operator before ends first.
        drop(last.take());
        let operator = bench.start(size).await?;
        applied.push(bench.apply(&operator, size).await.with_context(|| operator.tail())?);
        last = Some(operator);
    }
    let size = SIZES[SIZES.len() - 1];
    let operator = last.context("an operator")?;
    println!("3/4 {size} pipelines at rest, for a minute");
    let rest = bench.rest(&operator, size).await?;
    drop(operator);
    println!("4/4 a cold start with {size} pipelines");
    let cold = bench.cold(size).await?;
    for size in SIZES {
        let wrongs = stand_in.wrongs(&namespace(size));
        ensure!(wrongs.is_empty(), "{wrongs:?}");
    }
    let report = Report::new(applied, cold, rest);
    println!("\n{}", report.table());
    let file = stack::project().join("target/report/operator-bench.json");
    std::fs::create_dir_all(file.parent().unwrap_or(&file))?;
    std::fs::write(&file, serde_json::to_string_pretty(&report)?)?;
    println!("written to {}", file.display());
    Ok(())
}

fn namespace(size: u32) -> String {
    format!("bench-{size}")
}

/// Shards of the n-th pipeline.
fn shards(number: u32) -> u32 {
    1 + number % 2
}

/// Objects that are made for a store and pipelines of so many shards.
fn children(size: u32) -> f64 {
    let shards: u32 = (0..size).map(shards).sum();
    // Plan, two ServiceAccounts, Service, budget; files and Deployment of each shard. Of the store: files,
    // ServiceAccount, CronJob, migration.
    f64::from(5 * size + 2 * shards + 4)
}

/// The operator's binary, and what its pages say.
struct Operator {
    process: Process,
    pages: Pages,
    started: Instant,
}

impl Operator {
    async fn metrics(&self) -> Result<Metrics> {
        self.pages.metrics().await
    }

    async fn reconciles(&self) -> Result<f64> {
        Ok(self.metrics().await?.get(COUNT))
    }

    fn tail(&self) -> String {
        self.process.tail(20)
    }

    fn cpu(&self) -> f64 {
        cpu_seconds(self.process.id())
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.end(Signal::TERM, Duration::from_secs(20));
    }
}

const DURATIONS: &str = "penstock_operator_reconcile_duration_seconds/IngestPipeline";
const SUM: &str = "penstock_operator_reconcile_duration_seconds_sum/IngestPipeline";
const COUNT: &str = "penstock_operator_reconcile_duration_seconds_count/IngestPipeline";

struct Bench {
    cluster: Cluster,
    client: Client,
}

impl Bench {
    /// The operator, for the namespace of so many pipelines alone.
    async fn start(&self, size: u32) -> Result<Operator> {
        let (port, log) = (free_port()?, stack::folder().join("operator.log"));
        let process =
            operator::start(&self.cluster, &namespace(size), &["--no-election".to_owned()], port, &log)?;
        let operator = Operator { process, pages: Pages::at(port), started: Instant::now() };
        until_async("the operator answers", PATIENCE, || async { operator.metrics().await.is_ok() })
            .await
            .with_context(|| operator.tail())?;
        Ok(operator)
    }

    /// Creates so many pipelines, and waits until all that belongs to them is made, and they are ready.
    async fn apply(&self, operator: &Operator, size: u32) -> Result<Applied> {
        let namespace = namespace(size);
        let example = operator::example()?;
        operator::make_namespace(&self.client, &namespace, &example.store).await?;
        let stores: Api<TelemetryStore> = Api::namespaced(self.client.clone(), &namespace);
        until_async("the store's schema is ready", PATIENCE, || async {
            stores
                .get("main")
                .await
                .is_ok_and(|store| store.status.is_some_and(|status| status.migrated.is_some()))
        })
        .await?;
        let mut calls = Calls::new(&self.cluster.audit_log()?)?;
        calls.read(&namespace)?;
        let (before, cpu, started) = (operator.metrics().await?, operator.cpu(), Instant::now());
        let pipelines: Api<IngestPipeline> = Api::namespaced(self.client.clone(), &namespace);
        let creating = stream::iter(0..size)
            .map(|number| {
                let (pipelines, mut pipeline) = (pipelines.clone(), example.pipeline.clone());
                pipeline.metadata.name = Some(format!("fleet-{number}"));
                pipeline.spec.replicas = shards(number) as i32;
                pipeline.spec.source.mqtt.client_id_prefix = Some(format!("fleet-{number}"));
                async move { pipelines.create(&PostParams::default(), &pipeline).await }
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| std::future::ready(Ok(())));
        let (made, shown) = (std::cell::Cell::new(None), std::cell::Cell::new(started));
        let settled = async {
            until_async("all children are applied", PATIENCE, || async {
                let Ok(metrics) = operator.metrics().await else { return false };
                let created = created(&metrics);
                if shown.get().elapsed() > SHOWN {
                    shown.set(Instant::now());
                    println!("  {created:.0} of {:.0} objects", children(size));
                }
                created >= children(size)
            })
            .await?;
            made.set(Some(started.elapsed().as_secs_f64()));
            until_async("all are ready", PATIENCE, || async {
                // At most a tenth of the time goes into looking.
                let looked = Instant::now();
                let ready = self.ready(&pipelines).await.unwrap_or_default();
                if shown.get().elapsed() > SHOWN {
                    shown.set(Instant::now());
                    println!("  {ready} of {size} pipelines are ready");
                }
                tokio::time::sleep(looked.elapsed() * 9).await;
                ready == size as usize
            })
            .await
        };
        let (created, settled) = tokio::join!(creating, settled);
        created?;
        settled?;
        let ready = started.elapsed().as_secs_f64();
        // Not reconciles: each pipeline is looked at once a minute.
        let last = self.calm(operator, |metrics| metrics.sum("penstock_operator_writes_total")).await?;
        let metrics = operator.metrics().await?.since(&before);
        let calls = calls.read(&namespace)?;
        let applied = Applied {
            pipelines: size,
            shards: (0..size).map(shards).sum(),
            children_seconds: made.get().context("children")?,
            ready_seconds: ready,
            reconciles: metrics.get(COUNT) / f64::from(size),
            p50_ms: metrics.quantile(DURATIONS, 0.5) * 1e3,
            p99_ms: metrics.quantile(DURATIONS, 0.99) * 1e3,
            server_share: calls.writing_seconds / metrics.get(SUM),
            calls: calls.per(size),
            failures: metrics.sum("penstock_operator_reconcile_errors_total"),
            cpu_seconds: operator.cpu() - cpu,
            memory_mib: memory(operator)?,
        };
        println!(
            "  children after {:.1} s, ready after {ready:.1} s, at rest after {:.1} s; CPU {:.1} s, {:.0} MiB",
            applied.children_seconds,
            last.duration_since(started).as_secs_f64(),
            applied.cpu_seconds,
            applied.memory_mib
        );
        Ok(applied)
    }

    async fn ready(&self, pipelines: &Api<IngestPipeline>) -> Result<usize> {
        let all = pipelines.list(&ListParams::default()).await?;
        let ready = |pipeline: &&IngestPipeline| {
            let conditions = pipeline.status.iter().flat_map(|status| &status.conditions);
            let holds = |kind: &str, wanted: &str| {
                conditions.clone().any(|condition| condition.type_ == kind && condition.status == wanted)
            };
            holds("Ready", "True") && holds("Reconciling", "False")
        };
        Ok(all.items.iter().filter(ready).count())
    }

    /// Waits until nothing was counted for a while; when that was for the last time.
    async fn calm(&self, operator: &Operator, what: fn(&Metrics) -> f64) -> Result<Instant> {
        let (mut count, mut since) = (what(&operator.metrics().await?), Instant::now());
        let deadline = Instant::now() + PATIENCE;
        while since.elapsed() < CALM && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = what(&operator.metrics().await?);
            if now > count {
                (count, since) = (now, Instant::now());
            }
        }
        Ok(since)
    }

    async fn rest(&self, operator: &Operator, size: u32) -> Result<Rest> {
        let namespace = namespace(size);
        let mut calls = Calls::new(&self.cluster.audit_log()?)?;
        calls.read(&namespace)?;
        let (before, cpu) = (operator.metrics().await?, operator.cpu());
        tokio::time::sleep(MINUTE).await;
        let metrics = operator.metrics().await?.since(&before);
        let calls = calls.read(&namespace)?;
        Ok(Rest {
            writes: calls.writes(),
            calls: calls.all(),
            reconciles: metrics.get(COUNT),
            polls: metrics.sum("penstock_operator_polls_total"),
            p50_ms: metrics.quantile(DURATIONS, 0.5) * 1e3,
            p99_ms: metrics.quantile(DURATIONS, 0.99) * 1e3,
            cpu_seconds: operator.cpu() - cpu,
            memory_mib: memory(operator)?,
        })
    }

    async fn cold(&self, size: u32) -> Result<Cold> {
        let namespace = namespace(size);
        let mut calls = Calls::new(&self.cluster.audit_log()?)?;
        calls.read(&namespace)?;
        let operator = self.start(size).await?;
        until_async("all were reconciled", PATIENCE, || async {
            operator.reconciles().await.is_ok_and(|count| count >= f64::from(size))
        })
        .await?;
        let last = self.calm(&operator, |metrics| metrics.get(COUNT)).await?;
        let metrics = operator.metrics().await?;
        let calls = calls.read(&namespace)?;
        Ok(Cold {
            seconds: last.duration_since(operator.started).as_secs_f64(),
            reconciles: metrics.get(COUNT),
            p50_ms: metrics.quantile(DURATIONS, 0.5) * 1e3,
            p99_ms: metrics.quantile(DURATIONS, 0.99) * 1e3,
            writes: calls.writes(),
            calls: calls.all(),
            cpu_seconds: operator.cpu(),
            memory_mib: memory(&operator)?,
            peak_memory_mib: memory_of(operator.process.id(), "VmHWM:")? as f64 / f64::from(1 << 20),
        })
    }
}

fn created(metrics: &Metrics) -> f64 {
    metrics
        .0
        .iter()
        .filter(|(name, _)| name.starts_with("penstock_operator_writes_total/") && name.ends_with("/create"))
        .map(|(_, count)| count)
        .sum()
}

fn memory(operator: &Operator) -> Result<f64> {
    Ok(memory_of(operator.process.id(), "VmRSS:")? as f64 / f64::from(1 << 20))
}
