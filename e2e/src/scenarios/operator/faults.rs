//! The operator between faults of the API server and its own sudden ends: it comes to the same fixed point.
//! On a real API server without nodes; the operator runs in this process, workers are played.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use penstock_crds::{IngestPipeline, Manifest};
use penstock_operator::kinds::Kind;
use penstock_operator::metrics::Metrics;
use penstock_operator::plan::Plan;
use penstock_operator::resolve::Config;
use penstock_operator::{names, run};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::bed::Bed;
use crate::cluster::Cluster;
use crate::faults::Faults;
use crate::operator;
use crate::plant::{PIPELINE, is_settled};
use crate::scenario;
use crate::standin::{self, StandIn};
use crate::suite::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario!(an_operator_whose_calls_fail_at_random_comes_to_the_same_fixed_point[control_plane]),
        scenario!(an_operator_that_ends_after_any_of_its_writes_comes_to_the_same_fixed_point[control_plane]),
    ]
}

/// Lives under faults, each in a namespace of its own, at the same time.
const SEEDS: u64 = 6;
/// Share of calls that fault.
const RATE: f64 = 0.08;
/// Lives with a sudden end at the same time.
const AT_ONCE: usize = 16;
/// Until a step of a life is done. Failed reconciles come again after up to a minute, ended watches after
/// half of one.
const PATIENCE: Duration = Duration::from_secs(100);

async fn an_operator_whose_calls_fail_at_random_comes_to_the_same_fixed_point(bed: &mut Bed) -> Result<()> {
    let world = World::start(bed.cluster()?.as_ref()).await?;
    let wanted = world.life("clean", Faults::none()).await?;
    let seed = match std::env::var("PENSTOCK_SEED") {
        Ok(seed) => seed.parse().context("PENSTOCK_SEED is a number")?,
        Err(_) => fastrand::u64(..u64::MAX - SEEDS),
    };
    println!("  seeds from {seed} (PENSTOCK_SEED={seed} runs these again)");
    let lives = (0..SEEDS).map(|number| {
        let (world, wanted) = (&world, &wanted);
        async move {
            let faults = Faults::at_random(seed + number, RATE);
            let name = format!("seed-{number}");
            let is = world
                .life(&name, faults.clone())
                .await
                .with_context(|| format!("{name}: {:?}", faults.done()))?;
            require_same(&name, wanted, &is)?;
            println!("  {name}: {:?}", faults.done());
            anyhow::Ok(())
        }
    });
    futures_util::future::try_join_all(lives).await.map(drop)
}

async fn an_operator_that_ends_after_any_of_its_writes_comes_to_the_same_fixed_point(
    bed: &mut Bed,
) -> Result<()> {
    let world = World::start(bed.cluster()?.as_ref()).await?;
    let wanted = world.life("clean", Faults::none()).await?;
    // The first that comes to its end without having made so many writes is the last.
    let enough = AtomicBool::new(false);
    let lives = stream::iter(1_u32..)
        .take_while(|_| std::future::ready(!enough.load(std::sync::atomic::Ordering::SeqCst)))
        .map(|write| {
            let (world, wanted, enough) = (&world, &wanted, &enough);
            async move {
                let (name, faults) = (format!("write-{write}"), Faults::crash_after(write));
                let is = world.life(&name, faults.clone()).await.with_context(|| name.clone())?;
                require_same(&name, wanted, &is)?;
                if !faults.has_crashed() {
                    enough.store(true, std::sync::atomic::Ordering::SeqCst);
                }
                anyhow::Ok(write)
            }
        })
        .buffer_unordered(AT_ONCE);
    let ends: Vec<u32> = lives.try_collect().await?;
    println!("  ended after each of {} writes", ends.len());
    ensure!(ends.len() > 30, "a life needs more than {} writes", ends.len());
    Ok(())
}

/// What a fixed point is compared by: objects by kind and name.
type Picture = BTreeMap<String, Value>;

struct World {
    client: Client,
    config: kube::Config,
    stand_in: StandIn,
    example: Manifest,
}

/// An operator in this process; it ends when this is dropped, in the middle of what it does.
struct Operator {
    task: JoinHandle<()>,
    _stop: tokio::sync::watch::Sender<bool>,
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl World {
    async fn start(cluster: &Cluster) -> Result<Self> {
        cluster.define_kinds()?;
        let config = standin::config(cluster.kubeconfig()).await?;
        let client = Client::try_from(config.clone())?;
        let stand_in = StandIn::start(client.clone()).await?;
        Ok(Self { client, config, stand_in, example: operator::example()? })
    }

    fn operator(&self, namespace: &str, faults: &Faults) -> Result<Operator> {
        let client = faults.client(self.config.clone())?;
        let config = Config {
            worker_image: "localhost/none".to_owned(),
            pull_policy: "Never".to_owned(),
            retire_deadline: 600,
            pipelines_at_once: 5,
        };
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let (namespace, metrics) = (Some(namespace.to_owned()), Metrics::new()?);
        let ready = Arc::new(AtomicBool::new(false));
        let (_, leads) = tokio::sync::watch::channel(true);
        let task = tokio::spawn(run::run(client, config, namespace, metrics, ready, leads, stopped));
        Ok(Operator { task, _stop: stop })
    }

    /// A pipeline is applied, grows, shrinks, rests, goes on and is deleted. What there is before it is
    /// deleted.
    async fn life(&self, name: &str, faults: Faults) -> Result<Picture> {
        let namespace = format!("{name}-{:06x}", fastrand::u32(..1 << 24));
        let life = Life { world: self, namespace: &namespace };
        life.begin().await?;
        let operate = async {
            let first = self.operator(&namespace, &faults)?;
            faults.crashed().await;
            drop(first);
            let _second = self.operator(&namespace, &Faults::none())?;
            std::future::pending::<Result<()>>().await
        };
        let picture = tokio::select! {
            picture = life.run() => picture,
            ended = operate => ended.and_then(|()| bail!("the operator ended")),
        };
        let picture = picture.with_context(|| format!("in {namespace}"))?;
        let wrongs = self.stand_in.wrongs(&namespace);
        ensure!(wrongs.is_empty(), "{wrongs:?}");
        Ok(picture)
    }
}

struct Life<'a> {
    world: &'a World,
    namespace: &'a str,
}

impl Life<'_> {
    fn pipelines(&self) -> Api<IngestPipeline> {
        Api::namespaced(self.world.client.clone(), self.namespace)
    }

    async fn begin(&self) -> Result<()> {
        operator::make_namespace(&self.world.client, self.namespace, &self.world.example.store).await?;
        let mut pipeline = self.world.example.pipeline.clone();
        pipeline.spec.replicas = 1;
        // As a user may write it, and the API server reads it back otherwise.
        pipeline.spec.worker.resources =
            serde_json::from_value(json!({"requests": {"cpu": "1000m", "memory": "64Mi"}}))?;
        self.pipelines().create(&PostParams::default(), &pipeline).await?;
        Ok(())
    }

    async fn run(&self) -> Result<Picture> {
        self.settled(1).await?;
        for replicas in [3, 2] {
            self.change(&json!({"replicas": replicas})).await?;
            self.settled(replicas).await?;
            ensure!(self.sessions() == (0..replicas).collect::<Vec<_>>(), "sessions: {:?}", self.sessions());
        }
        self.change(&json!({"suspend": true})).await?;
        self.until("no pod is left", || async { Ok(self.all(Kind::Pod).await?.is_empty()) }).await?;
        ensure!(self.sessions() == [0, 1], "a pipeline at rest keeps its sessions: {:?}", self.sessions());
        self.change(&json!({"suspend": false})).await?;
        self.settled(2).await?;
        let picture = self.picture().await?;
        self.pipelines().delete(PIPELINE, &DeleteParams::background()).await?;
        self.until("the pipeline is gone", || async {
            Ok(self.pipelines().get_opt(PIPELINE).await?.is_none())
        })
        .await?;
        ensure!(self.sessions().is_empty(), "sessions are left: {:?}", self.sessions());
        let left = Mutex::new(Vec::new());
        let nothing_is_left = self.until("nothing of it is left", || async {
            let mut is_left = Vec::new();
            for kind in Kind::ALL {
                let names = self.all(kind).await?.into_iter().map(|object| object.name_any());
                is_left.extend(names.map(|name| format!("{} {name}", kind.as_str())));
            }
            let is_nothing = is_left.is_empty();
            *left.lock().unwrap_or_else(PoisonError::into_inner) = is_left;
            Ok(is_nothing)
        });
        nothing_is_left.await.with_context(|| format!("left: {left:?}"))?;
        Ok(picture)
    }

    fn sessions(&self) -> Vec<u32> {
        self.world.stand_in.sessions(self.namespace).into_iter().map(|shard| shard.number).collect()
    }

    async fn change(&self, spec: &Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.pipelines().patch(PIPELINE, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn settled(&self, replicas: u32) -> Result<()> {
        let what = format!("{replicas} shards are ready and settled");
        let waited = self.until(&what, || async {
            Ok(is_settled(&json!(self.pipelines().get(PIPELINE).await?), replicas))
        });
        let Err(error) = waited.await else { return Ok(()) };
        let status = json!(self.pipelines().get(PIPELINE).await?.status);
        Err(error.context(format!("{status:#}")))
    }

    async fn until<F: Future<Output = Result<bool>>>(&self, what: &str, holds: impl Fn() -> F) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !holds().await? {
            if tokio::time::Instant::now() > deadline {
                bail!("waited {PATIENCE:?} in vain until: {what}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    /// All of a kind that belongs to the pipeline.
    async fn all(&self, kind: Kind) -> Result<Vec<DynamicObject>> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.world.client.clone(), self.namespace, &kind.resource());
        let of_pipeline = ListParams::default().labels(&format!("{}={PIPELINE}", names::PIPELINE));
        Ok(api.list(&of_pipeline).await?.items)
    }

    /// The objects, without what differs from life to life: identities, times, counts of changes.
    async fn picture(&self) -> Result<Picture> {
        let mut picture = Picture::new();
        let (mut plan, mut told) = (Plan::default(), BTreeMap::new());
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pod) {
            for object in self.all(kind).await? {
                let name = object.name_any();
                let mut is = json!({
                    "labels": object.labels(),
                    "owners": object.owner_references().iter().map(|owner| &owner.name).collect::<Vec<_>>(),
                    "spec": object.data["spec"],
                });
                let data = |key: &str| object.data["data"][key].as_str().unwrap_or_default();
                match (kind, object.labels().get(names::SHARD)) {
                    (Kind::ConfigMap, None) => plan = serde_json::from_str(data("plan.json"))?,
                    (Kind::ConfigMap, Some(shard)) => {
                        let keys: Value = serde_json::from_str(data("plan.yaml"))?;
                        told.insert(shard.parse::<u32>()?, keys["keys"].clone());
                    }
                    _ => {}
                }
                if kind == Kind::ConfigMap {
                    is["manifest"] = data("manifest.yaml").replace(self.namespace, "NAMESPACE").into();
                }
                picture.insert(format!("{} {name}", kind.as_str()), is);
            }
        }
        for (shard, keys) in &told {
            ensure!(
                *keys == json!(plan.keys_of(*shard)),
                "shard {shard} is told {keys}, and the plan is {plan:?}"
            );
        }
        // Which keys a shard has may differ, how many not.
        let sizes: BTreeMap<String, usize> =
            plan.shards.iter().map(|shard| (shard.to_string(), plan.keys_of(*shard).len())).collect();
        picture.insert("plan".to_owned(), json!({"sizes": sizes, "moves": plan.is_moving()}));
        Ok(picture)
    }
}

fn require_same(name: &str, wanted: &Picture, is: &Picture) -> Result<()> {
    for key in wanted.keys().chain(is.keys()) {
        let (wanted, is) = (wanted.get(key), is.get(key));
        ensure!(wanted == is, "{name}: {key} is {:#}\nand without faults {:#}", json!(is), json!(wanted));
    }
    Ok(())
}
