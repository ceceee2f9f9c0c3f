//! What the stand-in's workers know and hold. Pure: what is seen in, answers out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::jiff::Timestamp;
use penstock_crds::plan::{ShardPlan, files_digest};
use penstock_crds::report::{LeaseStatus, PlanStatus, WorkerStatus};
use penstock_crds::{IngestPipeline, Manifest};

/// One shard of one pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId {
    /// Namespace.
    pub namespace: String,
    /// The pipeline's label.
    pub pipeline: String,
    /// Its number.
    pub number: u32,
}

/// When a pod was made, and its UID. The newest has the lease.
type Age = (Option<Timestamp>, String);

/// A worker's pod.
#[derive(Debug)]
struct Worker {
    shard: ShardId,
    age: Age,
    address: String,
}

/// What outlives a shard's pods: the row of its lease, and its session at the broker.
#[derive(Debug, Default)]
struct Session {
    generation: i64,
    keys: Vec<String>,
    filters: BTreeSet<String>,
    /// Digest of the files that are followed.
    digest: String,
}

/// What the workers know and hold.
#[derive(Debug, Default)]
pub struct World {
    files: HashMap<ShardId, BTreeMap<String, String>>,
    workers: HashMap<String, Worker>,
    by_shard: HashMap<ShardId, BTreeSet<Age>>,
    by_address: HashMap<String, String>,
    sessions: BTreeMap<ShardId, Session>,
    wrongs: Vec<(String, String)>,
    addresses: u32,
}

impl World {
    /// A shard's ConfigMap was written.
    pub fn write(&mut self, shard: &ShardId, data: BTreeMap<String, String>) {
        self.files.insert(shard.clone(), data);
        self.follow(shard);
    }

    /// A pod runs: at this address, or at one that it gets.
    pub fn run(
        &mut self,
        uid: &str,
        shard: &ShardId,
        created: Option<Timestamp>,
        address: Option<&str>,
    ) -> String {
        if let Some(worker) = self.workers.get(uid) {
            return worker.address.clone();
        }
        let address = address.map_or_else(
            || {
                self.addresses += 1;
                let [_, a, b, c] = self.addresses.to_be_bytes();
                format!("127.{}.{b}.{c}", 64 + a)
            },
            str::to_owned,
        );
        let age = (created, uid.to_owned());
        self.by_address.insert(address.clone(), uid.to_owned());
        self.by_shard.entry(shard.clone()).or_default().insert(age.clone());
        let worker = Worker { shard: shard.clone(), age, address: address.clone() };
        self.workers.insert(uid.to_owned(), worker);
        self.follow(shard);
        address
    }

    /// A pod ended.
    pub fn stop(&mut self, uid: &str) {
        if let Some(worker) = self.workers.remove(uid) {
            self.by_address.remove(&worker.address);
            if let Some(ages) = self.by_shard.get_mut(&worker.shard) {
                ages.remove(&worker.age);
            }
            self.follow(&worker.shard);
        }
    }

    /// All pods are told anew.
    pub fn forget_pods(&mut self) {
        self.workers.clear();
        self.by_shard.clear();
        self.by_address.clear();
    }

    /// A shard's session ends.
    pub fn retire(&mut self, shard: &ShardId) {
        if self.holder(shard).is_some() {
            self.wrong(shard, "is retired while its worker runs");
        }
        self.sessions.remove(shard);
    }

    fn wrong(&mut self, shard: &ShardId, what: &str) {
        let said = format!("shard {} of {}: {what}", shard.number, shard.pipeline);
        self.wrongs.push((shard.namespace.clone(), said));
    }

    /// Who has the lease of a shard.
    fn holder(&self, shard: &ShardId) -> Option<&String> {
        self.by_shard.get(shard)?.last().map(|(_, uid)| uid)
    }

    /// The shard's worker takes its files over. An older plan than the shard has followed is not followed.
    fn follow(&mut self, shard: &ShardId) {
        let Some(files) = self.files.get(shard).filter(|_| self.holder(shard).is_some()) else { return };
        let text = |name: &str| files.get(name).map(String::as_str).unwrap_or_default();
        let (manifest, plan) = (text("manifest.yaml"), text("plan.yaml"));
        let digest = files_digest(manifest, plan);
        let session = self.sessions.get(shard);
        if session.is_some_and(|session| session.digest == digest) {
            return;
        }
        let (Ok(Manifest { pipeline, .. }), Ok(plan)) = (Manifest::parse(manifest), ShardPlan::parse(plan))
        else {
            return self.wrong(shard, "has files that are no manifest and plan");
        };
        if session.is_some_and(|session| session.generation > plan.generation) {
            return;
        }
        let next = Session {
            generation: plan.generation,
            filters: filters(&pipeline, &plan),
            keys: plan.keys,
            digest,
        };
        let wanted = filters(&pipeline, &ShardPlan::whole(&pipeline.spec, shard.number));
        let dropped: Vec<String> = session
            .map(|session| session.filters.difference(&next.filters).cloned().collect())
            .unwrap_or_default();
        let lost: Vec<String> = dropped
            .into_iter()
            .filter(|filter| wanted.contains(filter) && !self.is_served_beside(shard, filter))
            .collect();
        for filter in lost {
            self.wrong(shard, &format!("releases {filter}, which no other worker has"));
        }
        self.sessions.insert(shard.clone(), next);
    }

    fn is_served_beside(&self, shard: &ShardId, filter: &str) -> bool {
        let first = ShardId { number: 0, ..shard.clone() };
        let mut of_pipeline = self.sessions.range(first..).take_while(|(other, _)| {
            (&other.namespace, &other.pipeline) == (&shard.namespace, &shard.pipeline)
        });
        of_pipeline.any(|(other, session)| {
            other.number != shard.number && session.filters.contains(filter) && self.holder(other).is_some()
        })
    }

    /// What the worker at an address says.
    pub fn answer(&self, address: &str) -> Option<WorkerStatus> {
        let uid = self.by_address.get(address)?;
        let shard = &self.workers.get(uid)?.shard;
        if self.holder(shard) != Some(uid) {
            return Some(WorkerStatus::not_ready("lease_not_held", "a newer pod has the lease".to_owned()));
        }
        let Some(session) = self.sessions.get(shard) else {
            return Some(WorkerStatus::not_ready("starting", "there are no files yet".to_owned()));
        };
        Some(WorkerStatus {
            shard: format!("{}/{}/{}", shard.namespace, shard.pipeline, shard.number),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: true,
            manifest: session.digest.clone(),
            plan: Some(PlanStatus { generation: session.generation, keys: Some(session.keys.clone()) }),
            subscribed: session.filters.clone(),
            lease: LeaseStatus {
                held: true,
                plan_generation: session.generation,
                filters: session.filters.clone(),
                ..LeaseStatus::default()
            },
            ..WorkerStatus::default()
        })
    }

    /// Shards of a namespace that have a session.
    pub fn sessions(&self, namespace: &str) -> Vec<ShardId> {
        self.sessions.keys().filter(|shard| shard.namespace == namespace).cloned().collect()
    }

    /// What was wrong in a namespace.
    pub fn wrongs(&self, namespace: &str) -> Vec<String> {
        self.wrongs.iter().filter(|(of, _)| of == namespace).map(|(_, wrong)| wrong.clone()).collect()
    }
}

fn filters(pipeline: &IngestPipeline, plan: &ShardPlan) -> BTreeSet<String> {
    let group = Manifest::client_id_prefix_of(pipeline);
    plan.subscriptions(&pipeline.spec, &group).into_iter().map(|subscription| subscription.filter).collect()
}
