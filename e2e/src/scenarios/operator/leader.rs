//! Two replicas of the operator: the one that leads dies, freezes, is cut off or is replaced in the middle
//! of a scale. Another finishes, and the API server's audit log never shows two that write.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::run::Run;
use crate::bed::Bed;
use crate::cluster::Cluster;
use crate::plant::{OPERATOR, PATIENCE, Plant, SYSTEM, condition};
use crate::scenario;
use crate::stack::process::output;
use crate::suite::Scenario;
use crate::wait::until_async;

/// The chart's lease, the time between two looks at it, and an API server that is busy.
const TAKEOVER: Duration = Duration::from_secs(15 + 2 + 3);
/// From a released lease to the next leader.
const HANDOVER: Duration = Duration::from_secs(4);

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(a_leader_is_killed_in_the_middle_of_a_scale_and_another_finishes_it[cluster, alone]),
        scenario!(a_leader_without_network_stops_before_another_begins_and_writes_nothing_later[cluster, alone]),
        scenario!(a_leader_that_was_frozen_writes_nothing_when_it_goes_on_and_ends[cluster, alone]),
        scenario!(a_rolling_restart_hands_the_lease_over_within_seconds[cluster, alone]),
    ]
}

/// A pipeline under load whose scale to four shards is on its way.
struct Moving {
    run: Run,
    /// The pod that leads.
    leader: String,
    /// How often its process has been started again.
    restarts: u64,
    /// Where the audit log ended before.
    from: usize,
}

impl Moving {
    async fn start(bed: &Bed, title: &str) -> Result<Self> {
        let cluster = bed.cluster()?;
        until_async("two replicas are ready", PATIENCE, || async { ready(&cluster).is_ok_and(|n| n == 2) })
            .await?;
        let from = std::fs::metadata(cluster.audit_log()?)?.len() as usize;
        let plant = Plant::new(bed).await?;
        plant.start(2).await?;
        let run = Run::start(bed, &plant, title);
        let leader = leader(&cluster)?;
        let restarts = restarts(&get(&cluster, &["pod", &leader])?);
        run.plant.scale(4)?;
        run.plant.until("the scale is on its way", |ipl| condition(ipl, "Reconciling").0 == "True").await?;
        Ok(Self { run, leader, restarts, from })
    }

    /// Waits until another leads; its pod.
    async fn taken_over(&self) -> Result<String> {
        let (since, mark) = (Instant::now(), self.run.recorder.mark("no leader"));
        let another =
            || leader(&self.run.plant.cluster).ok().filter(|pod| !pod.is_empty() && *pod != self.leader);
        until_async("another replica leads", TAKEOVER, || async { another().is_some() })
            .await
            .with_context(|| self.run.plant.logs())?;
        self.run.recorder.over(mark);
        let after = format!("{:.1} s", since.elapsed().as_secs_f64());
        eprintln!("  another replica leads after {after}");
        self.run.recorder.found("until another replica leads", after);
        another().context("nobody leads")
    }

    /// Lets it come to its end, and compares. Every write was by the pod that held the lease.
    async fn finish(self, bed: &Bed, name: &str) -> Result<Vec<Reign>> {
        self.run.plant.ready(4).await.with_context(|| self.run.plant.logs())?;
        // With the new leader there and back: time in which an old one would be heard of.
        self.run.scale(2).await?;
        let reigns = reigns(&self.run.plant.cluster, self.from)?;
        for reign in &reigns {
            eprintln!("  {}: {} writes", reign.pod, reign.writes);
        }
        self.run.finish(bed, name).await?;
        Ok(reigns)
    }

    /// Waits until the leader's process has ended by itself.
    async fn ended(&self) -> Result<()> {
        let pod = || get(&self.run.plant.cluster, &["pod", &self.leader]);
        until_async("the old leader has ended", PATIENCE, || async {
            pod().is_ok_and(|pod| restarts(&pod) > self.restarts)
        })
        .await?;
        let code = pod()?["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"].clone();
        ensure!(code == 1, "the old leader ended with {code}: {}", self.run.plant.logs());
        let said = self.run.plant.cluster.kubectl(&[
            "logs",
            "-n",
            SYSTEM,
            &self.leader,
            "--previous",
            "--tail=5",
        ])?;
        ensure!(said.contains("lease_not_renewed"), "it does not say why: {said}");
        Ok(())
    }
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default()
}

fn get(cluster: &Cluster, what: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&[&["get", "-n", SYSTEM, "-o", "json"], what].concat())?)?)
}

/// The operator's pods.
fn replicas(cluster: &Cluster) -> Result<Vec<Value>> {
    Ok(get(cluster, &["pods", "-l", OPERATOR])?["items"].as_array().cloned().unwrap_or_default())
}

/// How many of them are ready.
fn ready(cluster: &Cluster) -> Result<u64> {
    let status = get(cluster, &["deployment", "penstock"])?["status"].clone();
    ensure!(status["replicas"] == status["updatedReplicas"], "old ones are there");
    status["readyReplicas"].as_u64().context("none")
}

/// The pod that holds the lease.
fn leader(cluster: &Cluster) -> Result<String> {
    let lease = get(cluster, &["lease", "penstock"])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    Ok(holder.split('_').next().unwrap_or_default().to_owned())
}

/// Cuts a pod off from the API server, or lets it through again.
fn cut(cluster: &Cluster, pod: &str, rule: &str) -> Result<()> {
    let pod = get(cluster, &["pod", pod])?;
    let (address, node) = (pod["status"]["podIP"].as_str(), pod["spec"]["nodeName"].as_str());
    let (address, node) = (address.context("no address")?, cluster.node(node.context("no node")?)?);
    for way in [["-s", address], ["-d", address]] {
        let mut iptables = node.command("iptables");
        iptables.args([rule, "FORWARD", "-p", "tcp"]).args(way);
        iptables.args([if way[0] == "-s" { "--dport" } else { "--sport" }, "6443", "-j", "DROP"]);
        output(&mut iptables)?;
    }
    Ok(())
}

/// A pod's time as the holder of the lease.
#[derive(Debug)]
struct Reign {
    pod: String,
    /// When it wrote the lease first, and last: times of the API server.
    began: jiff::Timestamp,
    last: jiff::Timestamp,
    /// What else it wrote.
    writes: u32,
}

/// The reigns in the audit log. Fails if a pod wrote anything after another had taken the lease.
fn reigns(cluster: &Cluster, from: usize) -> Result<Vec<Reign>> {
    let log = std::fs::read(cluster.audit_log()?)?;
    let account = format!("system:serviceaccount:{SYSTEM}:penstock");
    let mut calls = Vec::new();
    for line in log[from..].split(|byte| *byte == b'\n') {
        let Ok(call) = serde_json::from_slice::<Value>(line) else { continue };
        let wrote = ["create", "update", "patch", "delete"].map(|verb| call["verb"] == verb).contains(&true);
        if call["user"]["username"] != account.as_str() || !wrote {
            continue;
        }
        let on_lease = call["objectRef"]["resource"] == "leases";
        if on_lease && call["responseStatus"]["code"].as_u64().is_none_or(|code| code >= 300) {
            continue;
        }
        // A lease counts when it is written, everything else as soon as it is there.
        let time = if on_lease { "stageTimestamp" } else { "requestReceivedTimestamp" };
        let time: jiff::Timestamp = call[time].as_str().context("a time")?.parse()?;
        let pod = &call["user"]["extra"]["authentication.kubernetes.io/pod-name"][0];
        calls.push((time, pod.as_str().context("a pod")?.to_owned(), on_lease, call.clone()));
    }
    calls.sort_by_key(|call| call.0);
    // It held the lease before the log begins.
    let first = calls.first().map(|call| (call.0, call.1.clone())).context("no write at all")?;
    let mut reigns = vec![Reign { pod: first.1, began: first.0, last: first.0, writes: 0 }];
    for (time, pod, on_lease, call) in calls {
        let Some(reign) = reigns.last_mut() else { bail!("no reign") };
        match (on_lease, reign.pod == pod) {
            (true, true) => reign.last = time,
            (true, false) => reigns.push(Reign { pod, began: time, last: time, writes: 0 }),
            (false, true) => reign.writes += 1,
            (false, false) => bail!("{pod} wrote while {} held the lease: {call}", reign.pod),
        }
    }
    Ok(reigns)
}

async fn a_leader_is_killed_in_the_middle_of_a_scale_and_another_finishes_it(bed: &mut Bed) -> Result<()> {
    let moving = Moving::start(bed, "A leader is killed in the middle of a scale").await?;
    let (cluster, old) = (moving.run.plant.cluster.clone(), moving.leader.clone());
    moving.run.plant.crash(SYSTEM, &old)?;
    // The pod goes as well: started again in it, the operator may be the first to see the lease expire.
    cluster.kubectl(&["delete", "pod", &old, "-n", SYSTEM, "--force", "--wait=false"])?;
    let new = moving.taken_over().await?;
    two_reigns(&moving.finish(bed, "5-leader-killed").await?, &old, &new)
}

/// One after the other, and both wrote.
fn two_reigns(reigns: &[Reign], old: &str, new: &str) -> Result<()> {
    let pods: Vec<&str> = reigns.iter().map(|reign| reign.pod.as_str()).collect();
    ensure!(pods == [old, new], "the lease was held by {pods:?}");
    ensure!(reigns.iter().all(|reign| reign.writes > 0), "one wrote nothing: {reigns:?}");
    Ok(())
}

async fn a_leader_without_network_stops_before_another_begins_and_writes_nothing_later(
    bed: &mut Bed,
) -> Result<()> {
    let moving = Moving::start(bed, "A leader without network in the middle of a scale").await?;
    let (cluster, old) = (moving.run.plant.cluster.clone(), moving.leader.clone());
    cut(&cluster, &old, "-I")?;
    let ended = moving.ended().await;
    let new = moving.taken_over().await;
    cut(&cluster, &old, "-D")?;
    ended?;
    two_reigns(&moving.finish(bed, "5-leader-cut-off").await?, &old, &new?)
}

async fn a_leader_that_was_frozen_writes_nothing_when_it_goes_on_and_ends(bed: &mut Bed) -> Result<()> {
    let moving = Moving::start(bed, "A leader that is frozen in the middle of a scale").await?;
    let old = moving.leader.clone();
    moving.run.plant.signal(SYSTEM, &old, "SIGSTOP")?;
    let new = moving.taken_over().await;
    moving.run.plant.signal(SYSTEM, &old, "SIGCONT")?;
    moving.ended().await?;
    two_reigns(&moving.finish(bed, "5-leader-frozen").await?, &old, &new?)
}

async fn a_rolling_restart_hands_the_lease_over_within_seconds(bed: &mut Bed) -> Result<()> {
    let moving = Moving::start(bed, "A rolling restart of the operator in the middle of a scale").await?;
    let cluster = moving.run.plant.cluster.clone();
    let old: Vec<Value> = replicas(&cluster)?.iter().map(|pod| pod["metadata"]["name"].clone()).collect();
    cluster.kubectl(&["rollout", "restart", "-n", SYSTEM, "deployment/penstock"])?;
    cluster.kubectl(&["rollout", "status", "-n", SYSTEM, "deployment/penstock", "--timeout=90s"])?;
    moving.taken_over().await?;
    let reigns = moving.finish(bed, "5-rolling-restart").await?;
    let last = reigns.last().context("nobody leads")?;
    ensure!(!old.contains(&Value::from(last.pod.as_str())), "an old one leads: {reigns:?}");
    for pair in reigns.windows(2) {
        let gap = pair[1].began.duration_since(pair[0].last).unsigned_abs();
        eprintln!("  from the released lease to the next leader: {:.1} s", gap.as_secs_f64());
        ensure!(gap <= HANDOVER, "a handover took {gap:?}");
    }
    Ok(())
}
