//! Alert rules and dashboards: by promtool, and by a real Prometheus while there is a real fault.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::cluster::image::PENSTOCK;
use crate::fleet::Fleet;
use crate::plant::{PIPELINE, Plant, SYSTEM};
use crate::proxy::{Mode, Proxy};
use crate::publisher::{self, Outgoing};
use crate::scenario;
use crate::scenarios::load::Load;
use crate::stack::mosquitto::Setup;
use crate::stack::prometheus::{Prometheus, promtool};
use crate::stack::{self, process};
use crate::suite::Scenario;
use crate::wait::until_async;

const RULES: &str = "charts/penstock/files/alerts.yaml";
const TESTS: &str = "e2e/alerts/tests.yaml";
const DASHBOARDS: &str = "charts/penstock/files/dashboards";
/// What rules and dashboards ask for begins so.
const OURS: [&str; 2] = ["ingest_", "penstock_operator_"];
const SOON: Duration = Duration::from_secs(120);
/// Messages a second.
const RATE: f64 = 300.0;

/// All of them.
pub fn all() -> Vec<Scenario> {
    // With a small queue the broker drops what comes while nobody takes it.
    let dropping = Setup { queue: 100, ..Setup::default() };
    vec![
        scenario!(every_alert_fires_in_its_test_and_has_a_page_of_what_to_do[prometheus]),
        Scenario {
            setup: dropping,
            ..scenario!(
                alerts_tell_a_broker_or_database_that_is_away_and_what_is_lost_late_or_refused
                    [broker, prometheus, alone]
            )
        },
        scenario!(
            alerts_tell_a_stalled_rollout_and_limited_scaling_and_dashboards_show_what_there_is
                [cluster, prometheus, alone]
        ),
    ]
}

fn project(path: &str) -> Result<String> {
    std::fs::read_to_string(stack::project().join(path)).with_context(|| path.to_owned())
}

/// Strings under this key, wherever it is.
fn under<'a>(key: &str, value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key).and_then(Value::as_str));
            fields.values().for_each(|value| under(key, value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| under(key, value, found)),
        _ => {}
    }
}

async fn every_alert_fires_in_its_test_and_has_a_page_of_what_to_do(_: &mut Bed) -> Result<()> {
    let mut test = promtool()?;
    tokio::task::spawn_blocking(move || {
        process::output(test.args(["test", "rules", TESTS]).current_dir(stack::project()))
    })
    .await??;
    let (rules, tests): (Value, String) = (serde_saphyr::from_str(&project(RULES)?)?, project(TESTS)?);
    let groups = rules["groups"].as_array().into_iter().flatten();
    let alerts: Vec<&Value> = groups.filter_map(|group| group["rules"].as_array()).flatten().collect();
    ensure!(alerts.len() >= 7, "{} alerts", alerts.len());
    let mut pages = BTreeSet::new();
    for alert in alerts {
        let name = alert["alert"].as_str().context("a name")?;
        let tested = format!("alertstate=\"firing\",alertname=\"{name}\"");
        ensure!(tests.contains(&tested), "no test in which {name} fires");
        let severity = alert["labels"]["severity"].as_str().unwrap_or_default();
        ensure!(["critical", "warning"].contains(&severity), "the severity of {name} is {severity:?}");
        for text in ["summary", "description"] {
            ensure!(alert["annotations"][text].is_string(), "{name} has no {text}");
        }
        let page = format!("docs/runbook/{name}.md");
        ensure!(alert["annotations"]["runbook_url"] == page.as_str(), "{name} does not link to {page}");
        for part in ["## What it means", "## Look", "## Do"] {
            ensure!(project(&page)?.contains(part), "{page} has no {part:?}");
        }
        pages.insert(format!("{name}.md"));
    }
    for page in std::fs::read_dir(stack::project().join("docs/runbook"))? {
        let page = page?.file_name().to_string_lossy().into_owned();
        ensure!(pages.contains(&page), "docs/runbook/{page} is of no alert");
    }
    Ok(())
}

/// The rules without patience, in a file for Prometheus.
fn impatient_rules(folder: &Path) -> Result<()> {
    let line = |line: &str| match line.split_once("    for: ") {
        Some((before, _)) => format!("{before}    for: 1s\n"),
        None => format!("{}\n", line.replace("_seconds) > 60", "_seconds) > 3")),
    };
    Ok(std::fs::write(folder.join("alerts.yaml"), project(RULES)?.lines().map(line).collect::<String>())?)
}

/// Fails if an alert fires that none of these is.
async fn quiet_but_for(prometheus: &Prometheus, names: &str) -> Result<()> {
    let firing = prometheus.query(&format!("ALERTS{{alertstate=\"firing\",alertname!~\"{names}\"}}")).await?;
    ensure!(firing.is_empty(), "alerts without a fault: {firing:?}");
    Ok(())
}

async fn alerts_tell_a_broker_or_database_that_is_away_and_what_is_lost_late_or_refused(
    bed: &mut Bed,
) -> Result<()> {
    let to_database =
        format!("127.0.0.1:{}", url::Url::parse(&bed.database.worker_url)?.port().unwrap_or(5432));
    let (broker, database) = (Proxy::start(bed.address.clone()).await?, Proxy::start(to_database).await?);
    bed.reach_database_through(database.port)?;
    let (direct, through) = (bed.address.clone(), format!("127.0.0.1:{}", broker.port));
    let worker = bed.worker_with(|text| text.replace(&direct, &through)).await?;
    impatient_rules(&bed.folder)?;
    let prometheus = Prometheus::start(
        &bed.folder,
        &format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [alerts.yaml]\n\
             scrape_configs:\n- job_name: workers\n  static_configs:\n  - targets: ['127.0.0.1:{}']\n    \
             labels: {{namespace: works, pipeline: plant, shard: '0'}}\n",
            worker.pages.port()
        ),
    )
    .await?;
    let load = Load::start(Fleet::steady(&bed.address, RATE, 1_000_000));
    flows(&prometheus).await?;
    quiet_but_for(&prometheus, "PenstockOperatorAway").await?;
    for (proxy, alert) in [(&broker, "PenstockBrokerAway"), (&database, "PenstockDatabaseAway")] {
        proxy.set(Mode::Cut);
        prometheus.alert(alert, true, SOON).await?;
        proxy.set(Mode::Pass);
        prometheus.alert(alert, false, SOON).await?;
    }
    prometheus.alert("PenstockBrokerDrops", true, SOON).await?;
    let held = bed.hold_writers().await?;
    prometheus.alert("PenstockBacklog", true, SOON).await?;
    prometheus.alert("PenstockCommitsLate", true, SOON).await?;
    held.release().await?;
    prometheus.alert("PenstockBacklog", false, SOON).await?;
    prometheus.alert("PenstockCommitsLate", false, SOON).await?;
    let bad = |n: u32| Outgoing {
        topic: "traksense/t0/s1/d/telem".into(),
        payload: format!("{{{n}").into(),
        qos: 1,
    };
    bed.publish((0..1000).map(bad).collect()).await?;
    prometheus.alert("PenstockDeadLetters", true, SOON).await?;
    load.stop().await?;
    worker.idle().await?;
    // Another client with the worker's id, again and again.
    let (address, id) = (bed.address.clone(), bed.client_id());
    let intruder = tokio::spawn(async move {
        loop {
            let _ = publisher::has_session(&address, &id).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    prometheus.alert("PenstockClientIdInUse", true, SOON).await?;
    intruder.abort();
    worker.ready().await?;
    let lasting = "PenstockOperatorAway|PenstockBrokerDrops|PenstockDeadLetters|PenstockClientIdInUse";
    prometheus.alert("PenstockBrokerAway", false, SOON).await?;
    quiet_but_for(&prometheus, lasting).await?;
    bed.broker()?.stop()?;
    bed.broker()?.wipe()?;
    bed.broker()?.start_again()?;
    prometheus.alert("PenstockSessionLost", true, SOON).await
}

/// Waits until messages are committed, as Prometheus sees it.
async fn flows(prometheus: &Prometheus) -> Result<()> {
    until_async("Prometheus sees commits", SOON, || async {
        prometheus.query("rate(ingest_committed_total[30s]) > 0").await.is_ok_and(|series| !series.is_empty())
    })
    .await
}

async fn alerts_tell_a_stalled_rollout_and_limited_scaling_and_dashboards_show_what_there_is(
    bed: &mut Bed,
) -> Result<()> {
    let plant = Plant::new(bed).await?;
    plant.start(1).await.with_context(|| plant.logs())?;
    impatient_rules(&bed.folder)?;
    let prometheus = plant.prometheus(&bed.folder).await?;
    let load = Load::start(Fleet::steady(&bed.address, RATE, 1_000_000));
    flows(&prometheus).await?;
    dashboards_show_what_there_is(&prometheus).await?;
    plant.scale(9)?;
    prometheus.alert("PenstockScalingLimited", true, SOON).await?;
    plant.scale(1)?;
    plant.ready(1).await.with_context(|| plant.logs())?;
    prometheus.alert("PenstockScalingLimited", false, SOON).await?;
    plant.set_image("localhost/penstock:none")?;
    prometheus.alert("PenstockRolloutStalled", true, SOON).await?;
    plant.set_image(PENSTOCK)?;
    prometheus.alert("PenstockRolloutStalled", false, SOON).await?;
    let nowhere = r#"{"spec":{"sink":{"storeRef":{"name":"nowhere"}}}}"#;
    plant.kubectl(&["patch", "ingestpipelines.penstock.dev", PIPELINE, "--type=merge", "-p", nowhere])?;
    prometheus.alert("PenstockStalled", true, SOON).await?;
    plant.broker.set(Mode::Cut);
    prometheus.alert("PenstockNotReady", true, SOON).await?;
    plant.broker.set(Mode::Pass);
    prometheus.alert("PenstockNotReady", false, SOON).await?;
    load.stop().await?;
    plant.apply(&broken_store())?;
    prometheus.alert("PenstockSchemaNotReady", true, SOON).await?;
    replicas_of_the_operator(&plant, 0)?;
    let told = prometheus.alert("PenstockOperatorAway", true, SOON).await;
    // Others need it, also when this failed.
    replicas_of_the_operator(&plant, 2)?;
    told?;
    prometheus.alert("PenstockOperatorAway", false, SOON).await
}

/// A store whose owner finds no database.
fn broken_store() -> String {
    let url = json!({"url": {"secretKeyRef": {"name": "nowhere", "key": "url"}}});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "nowhere"},
            "stringData": {"url": "postgres://nobody:p-secret@127.0.0.1:1/none"}},
        {"apiVersion": "penstock.dev/v1alpha1", "kind": "TelemetryStore", "metadata": {"name": "broken"},
            "spec": {"database": url, "migration": url}},
    ]})
    .to_string()
}

fn replicas_of_the_operator(plant: &Plant, count: u32) -> Result<()> {
    let count = format!("--replicas={count}");
    plant.cluster.kubectl(&["scale", "deployment", "penstock", "-n", SYSTEM, &count]).map(drop)
}

/// All that rules and dashboards ask for is there, and every panel shows something.
async fn dashboards_show_what_there_is(prometheus: &Prometheus) -> Result<()> {
    let rules: Value = serde_saphyr::from_str(&project(RULES)?)?;
    let mut expressions = Vec::new();
    under("expr", &rules, &mut expressions);
    let mut boards: Vec<Value> = Vec::new();
    for file in std::fs::read_dir(stack::project().join(DASHBOARDS))? {
        boards.push(serde_json::from_str(&std::fs::read_to_string(file?.path())?)?);
    }
    ensure!(boards.len() == 3, "{} dashboards", boards.len());
    for board in &boards {
        let mut panels = Vec::new();
        under("expr", board, &mut panels);
        under("query", board, &mut expressions);
        for panel in &panels {
            let asked = panel
                .replace("$namespace", ".*")
                .replace("$pipeline", ".*")
                .replace("$__rate_interval", "30s");
            // Some show only what is not as it should be.
            let may_be_empty = ["> 0", "== 0 or", "ALERTS"].iter().any(|part| panel.contains(part));
            let what = format!("{} shows something: {asked}", board["title"]);
            let shown = until_async(&what, SOON, || async {
                prometheus.query(&asked).await.is_ok_and(|shown| may_be_empty || !shown.is_empty())
            });
            shown.await?;
        }
        expressions.extend(panels);
    }
    let asked = expressions.into_iter().flat_map(metrics_in).collect::<BTreeSet<_>>();
    ensure!(asked.len() > 30, "{asked:?}");
    let names = prometheus.names().await?;
    let missing: Vec<&str> =
        asked.into_iter().filter(|name| !names.iter().any(|known| known == name)).collect();
    ensure!(missing.is_empty(), "rules or dashboards ask for what nobody tells: {missing:?}");
    Ok(())
}

/// Our metrics that an expression names.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| OURS.iter().any(|ours| word.starts_with(ours)))
}
