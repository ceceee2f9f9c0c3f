//! One pipeline that cannot be read, as the API server may hold it: all others go on, and it is left alone.
//! The whole operator, with a played API server.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::convert::Infallible;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{Method, Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use penstock_crds::Manifest;
use penstock_operator::metrics::Metrics;
use penstock_operator::release::release;
use penstock_operator::resolve::Config;
use penstock_operator::{names, run};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::service_fn;

const PIPELINES: &str = "/apis/penstock.dev/v1alpha1/ingestpipelines";
const STORES: &str = "/apis/penstock.dev/v1alpha1/telemetrystores";

fn pipeline(name: &str, good: bool) -> Value {
    let example = include_str!("../../examples/plant.yaml");
    let mut object = json!(Manifest::parse(example).unwrap().pipeline);
    object["metadata"] = json!({
        "name": name, "namespace": "works", "uid": name, "resourceVersion": "7",
        "finalizers": [names::FINALIZER, "other/finalizer"],
    });
    object["spec"]["source"]["mqtt"]["clientIdPrefix"] = json!(name);
    if !good {
        object["spec"]["batch"]["linger"] = json!("soon");
    }
    object
}

/// Has pipelines and nothing else. What is written is kept, as what of whom.
#[derive(Clone)]
struct Played {
    pipelines: Arc<Vec<Value>>,
    change: Option<Value>,
    written: Arc<Mutex<Vec<String>>>,
    count: watch::Sender<usize>,
}

impl Played {
    fn new(pipelines: Vec<Value>, change: Option<Value>) -> Self {
        let (count, _) = watch::channel(0);
        Self { pipelines: Arc::new(pipelines), change, written: Arc::default(), count }
    }

    fn client(&self) -> Client {
        let played = self.clone();
        Client::new(service_fn(move |request| played.clone().answer(request)), "works")
    }

    fn has(&self, what: &str) -> bool {
        self.written.lock().unwrap().iter().any(|written| written == what)
    }

    async fn until(&self, what: &str) {
        let wrote = self.count.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            wrote.clone().wait_for(|_| self.has(what)).await.map(drop)
        });
        let waited = waited.await;
        assert!(waited.is_ok(), "no {what}: {:?}", self.written.lock().unwrap());
    }

    async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let said = body.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
        let answer = match parts.method {
            Method::GET if parts.uri.query().unwrap_or_default().contains("watch=true") => {
                let change = self.change.as_ref().filter(|_| path == PIPELINES);
                let Some(change) = change else { return std::future::pending().await };
                json!({"type": "MODIFIED", "object": change})
            }
            Method::GET => {
                // Reconciles begin when both kinds are listed: then the pipelines' changes are known, too.
                if path == STORES {
                    self.until("Event unreadable bad").await;
                }
                let items = if path == PIPELINES { (*self.pipelines).clone() } else { Vec::new() };
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": items})
            }
            _ => {
                let said: Value = serde_json::from_slice(&said).unwrap_or_default();
                let about = said["regarding"]["name"].as_str();
                let what = match about {
                    Some(name) => format!("Event {} {name}", said["reason"].as_str().unwrap()),
                    None => format!("{} {}", parts.method, path.rsplit("/works/").next().unwrap()),
                };
                self.written.lock().unwrap().push(what);
                self.count.send_modify(|count| *count += 1);
                let of = |pipeline: &&Value| path.contains(pipeline["metadata"]["name"].as_str().unwrap());
                match self.pipelines.iter().find(of) {
                    Some(pipeline) => pipeline.clone(),
                    None if about.is_some() => said,
                    None => {
                        let gone =
                            json!({"status": "Failure", "reason": "NotFound", "code": 404, "message": ""});
                        let gone = Body::from(gone.to_string().into_bytes());
                        return Ok(Response::builder().status(StatusCode::NOT_FOUND).body(gone).unwrap());
                    }
                }
            }
        };
        Ok(Response::new(Body::from(format!("{answer}\n").into_bytes())))
    }
}

/// Runs an operator until it has written the status of the good one.
async fn operate(played: &Played) {
    let config = Config {
        worker_image: "localhost/none".to_owned(),
        pull_policy: "Never".to_owned(),
        retire_deadline: 600,
        pipelines_at_once: 5,
    };
    let (_stop, stopped) = watch::channel(false);
    let (_lead, leads) = watch::channel(true);
    let ready = Arc::new(AtomicBool::new(false));
    let operator = run::run(played.client(), config, None, Metrics::new().unwrap(), ready, leads, stopped);
    tokio::select! {
        () = operator => panic!("it ended"),
        () = played.until("PATCH ingestpipelines/good/status") => {}
    }
    let written = played.written.lock().unwrap();
    let of_bad: Vec<_> = written.iter().filter(|what| what.contains("bad")).collect();
    assert_eq!(of_bad, ["Event unreadable bad"], "it is left alone, and told once");
}

#[tokio::test]
async fn pipelines_are_reconciled_beside_one_that_cannot_be_read() {
    operate(&Played::new(vec![pipeline("bad", false), pipeline("good", true)], None)).await;
}

#[tokio::test]
async fn a_pipeline_that_cannot_be_read_any_more_is_left_alone() {
    let listed = vec![pipeline("bad", true), pipeline("good", true)];
    operate(&Played::new(listed, Some(pipeline("bad", false)))).await;
}

#[tokio::test]
async fn an_operator_that_goes_releases_pipelines_that_can_be_read_and_those_that_cannot() {
    let played = Played::new(vec![pipeline("bad", false), pipeline("good", true)], None);
    release(&played.client(), "penstock", "penstock", &[]).await.unwrap();
    for name in ["bad", "good"] {
        assert!(played.has(&format!("PATCH ingestpipelines/{name}")), "{name}");
        assert!(played.has(&format!("Event sessions_left {name}")), "{name}");
    }
}
