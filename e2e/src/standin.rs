//! Stands in for kubelets and workers where a control plane has no nodes: pods run as soon as they are
//! made, workers follow their files at once and answer `/status`, jobs do their work. What it sees the
//! operator do wrong is kept.

mod world;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, State};
use axum::serve::IncomingStream;
use axum::{Json, Router};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, ResourceExt};
use penstock_crds::report::{Proof, RetireReport, StoreReport, WorkerStatus};
use penstock_operator::names;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use self::world::ShardId;
use self::world::World;

/// Where the operator asks workers; each pod has an address of its own on this machine's loopback.
pub const PORT: u16 = 9100;
/// Pods whose status is written at a time.
const AT_ONCE: usize = 16;
const TRIES: u32 = 5;

/// Kubelets and workers of all namespaces; they end when this is dropped.
pub struct StandIn {
    world: Arc<Mutex<World>>,
    /// Its watches and pages.
    _tasks: JoinSet<()>,
}

impl StandIn {
    /// Starts them. One at a time on a machine.
    pub async fn start(client: Client) -> Result<Self> {
        let world = Arc::new(Mutex::new(World::default()));
        // On all addresses: which pod is asked, the address of the connection tells.
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))
            .await
            .with_context(|| format!("port {PORT}, where workers are asked for their status"))?;
        let pages = Router::new().route("/status", axum::routing::get(status)).with_state(Arc::clone(&world));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = axum::serve(listener, pages.into_make_service_with_connect_info::<Local>()).await;
        });
        tasks.spawn(files(client.clone(), Arc::clone(&world)));
        tasks.spawn(pods(client, Arc::clone(&world)));
        Ok(Self { world, _tasks: tasks })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        locked(&self.world)
    }

    /// Shards of a namespace that have a session at the broker.
    pub fn sessions(&self, namespace: &str) -> Vec<ShardId> {
        self.world().sessions(namespace)
    }

    /// What the operator did to a namespace that it must never do.
    pub fn wrongs(&self, namespace: &str) -> Vec<String> {
        self.world().wrongs(namespace)
    }
}

fn locked(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The address that was connected to.
#[derive(Debug, Clone, Copy)]
struct Local(Option<IpAddr>);

impl Connected<IncomingStream<'_, TcpListener>> for Local {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.io().local_addr().ok().map(|address| address.ip()))
    }
}

async fn status(
    State(world): State<Arc<Mutex<World>>>,
    ConnectInfo(Local(address)): ConnectInfo<Local>,
) -> Result<Json<WorkerStatus>, axum::http::StatusCode> {
    let answer = address.and_then(|address| locked(&world).answer(&address.to_string()));
    answer.map(Json).ok_or(axum::http::StatusCode::NOT_FOUND)
}

fn ours() -> watcher::Config {
    watcher::Config::default().labels(&format!("{}={}", names::MANAGED_BY, names::PENSTOCK))
}

async fn files(client: Client, world: Arc<Mutex<World>>) {
    let events = watch(Api::<ConfigMap>::all(client), ours()).default_backoff();
    events
        .for_each(|event| {
            if let Ok(Event::Apply(map) | Event::InitApply(map)) = event
                && let Some(shard) = shard_of(&map)
                && component(&map) == "worker"
            {
                locked(&world).write(&shard, map.data.unwrap_or_default());
            }
            std::future::ready(())
        })
        .await;
}

async fn pods(client: Client, world: Arc<Mutex<World>>) {
    let events = watch(Api::<Pod>::all(client.clone()), ours()).default_backoff();
    events
        .for_each_concurrent(AT_ONCE, |event| {
            let (client, world) = (client.clone(), Arc::clone(&world));
            async move {
                match event {
                    Ok(Event::Init) => locked(&world).forget_pods(),
                    Ok(Event::Delete(pod)) => locked(&world).stop(&pod.uid().unwrap_or_default()),
                    Ok(Event::Apply(pod) | Event::InitApply(pod)) => play(&client, &world, &pod).await,
                    Ok(Event::InitDone) | Err(_) => {}
                }
            }
        })
        .await;
}

/// What a pod does next.
async fn play(client: &Client, world: &Mutex<World>, pod: &Pod) {
    let uid = pod.uid().unwrap_or_default();
    let has = pod.status.clone().unwrap_or_default();
    let started = has.pod_ip.clone();
    let next = match component(pod).as_str() {
        "worker" => {
            let Some(shard) = shard_of(pod) else { return };
            if pod.metadata.deletion_timestamp.is_some() {
                return locked(world).stop(&uid);
            }
            let created = pod.creation_timestamp().map(|time| time.0);
            let address = locked(world).run(&uid, &shard, created, started.as_deref());
            started.is_none().then(|| running(pod, &address))
        }
        _ if has.phase.as_deref() == Some("Succeeded") => None,
        "retire" => {
            let Some(shard) = shard_of(pod) else { return };
            locked(world).retire(&shard);
            let report = RetireReport { retired: true, proof: Proof::Marker, client_ids: vec![], cut: false };
            Some(done(pod, &json!(report)))
        }
        "migrate" => {
            let report = StoreReport {
                edition: "PostgreSQL".to_owned(),
                server: "17".to_owned(),
                schema_version: Some(1),
                ..StoreReport::default()
            };
            Some(done(pod, &json!(report)))
        }
        _ => None,
    };
    let Some(next) = next else { return };
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({"metadata": {"uid": uid}, "status": next}));
    for attempt in 1..=TRIES {
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => return,
            // Gone meanwhile.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return,
            Err(error) if attempt == TRIES => eprintln!("stand-in: pod {}: {error}", pod.name_any()),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
        }
    }
}

fn running(pod: &Pod, address: &str) -> Value {
    let now = Timestamp::now().to_string();
    let state = json!({"running": {"startedAt": now}});
    json!({
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": now,
        "conditions": conditions(true, &now),
        "containerStatuses": [container(pod, true, &state)],
    })
}

/// A job's pod that ended well, with its termination message.
fn done(pod: &Pod, message: &Value) -> Value {
    let now = Timestamp::now().to_string();
    let state = json!({"terminated": {
        "exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now, "message": message.to_string(),
    }});
    json!({
        "phase": "Succeeded", "startTime": now,
        "conditions": conditions(false, &now),
        "containerStatuses": [container(pod, false, &state)],
    })
}

fn container(pod: &Pod, ready: bool, state: &Value) -> Value {
    let first = pod.spec.iter().flat_map(|spec| &spec.containers).next();
    json!({
        "name": first.map(|container| &container.name),
        "image": first.and_then(|container| container.image.as_ref()),
        "imageID": "", "ready": ready, "started": ready, "restartCount": 0, "state": state,
    })
}

fn conditions(ready: bool, now: &str) -> Value {
    let condition = |kind: &str, holds: bool| json!({"type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": now});
    json!([
        condition("PodScheduled", true),
        condition("Initialized", true),
        condition("ContainersReady", ready),
        condition("Ready", ready),
    ])
}

fn component<K: ResourceExt>(object: &K) -> String {
    object.labels().get(names::COMPONENT).cloned().unwrap_or_default()
}

fn shard_of<K: ResourceExt>(object: &K) -> Option<ShardId> {
    let label = |name: &str| object.labels().get(name).cloned();
    Some(ShardId {
        namespace: object.namespace()?,
        pipeline: label(names::PIPELINE)?,
        number: label(names::SHARD)?.parse().ok()?,
    })
}

/// A client of the cluster of a kubeconfig.
pub async fn client(kubeconfig: &std::path::Path) -> Result<Client> {
    Ok(Client::try_from(config(kubeconfig).await?)?)
}

/// How to reach the cluster of a kubeconfig.
pub async fn config(kubeconfig: &std::path::Path) -> Result<kube::Config> {
    let file = kube::config::Kubeconfig::read_from(kubeconfig)?;
    Ok(kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default()).await?)
}
