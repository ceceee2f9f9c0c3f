//! An API server for external metrics beside the cluster's own, as prometheus-adapter is: it reads the
//! adapter's own kind of rules and answers from a real Prometheus.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::cluster::Cluster;
use crate::plant::Plant;
use crate::stack;
use crate::stack::certificates::Authority;
use crate::stack::prometheus::Prometheus;

const API: &str = "/apis/external.metrics.k8s.io/v1beta1";
/// Its registration; one at a time in a cluster.
const REGISTRATION: &str = "v1beta1.external.metrics.k8s.io";

/// How a metric is asked of Prometheus.
#[derive(Debug)]
struct Rule {
    series: String,
    query: String,
}

#[derive(Debug)]
struct Answers {
    rules: BTreeMap<String, Rule>,
    prometheus: Prometheus,
}

/// A running adapter, registered in a cluster until it is dropped.
pub struct Adapter {
    cluster: Arc<Cluster>,
    task: JoinHandle<io::Result<()>>,
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // Without it no namespace could be deleted while nobody answers.
        let _ = self.cluster.kubectl(&["delete", "apiservice", REGISTRATION, "--ignore-not-found"]);
        self.task.abort();
    }
}

impl Adapter {
    /// Starts one that answers from this Prometheus, and registers it by a Service beside the pipeline.
    pub async fn start(plant: &Plant, prometheus: Prometheus) -> Result<Self> {
        let host = plant.cluster.host_address()?;
        let listener = Tls::bind(host).await?;
        let port = axum::serve::Listener::local_addr(&listener)?.port();
        let answers = Arc::new(Answers { rules: rules()?, prometheus });
        let pages = Router::new()
            .route(API, get(|| async { Json(json!({"kind": "APIResourceList", "resources": []})) }))
            .route(&format!("{API}/namespaces/{{namespace}}/{{metric}}"), get(metric))
            .with_state(answers);
        let task = tokio::spawn(async move { axum::serve(listener, pages).await });
        let adapter = Self { cluster: Arc::clone(&plant.cluster), task };
        let name = "metrics-adapter";
        for object in [
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
                "spec": {"ports": [{"port": 443, "targetPort": port}]}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4", "ports": [{"port": port}],
                "endpoints": [{"addresses": [host], "conditions": {"ready": true}}]}),
            json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": REGISTRATION},
            "spec": {
                "group": "external.metrics.k8s.io", "version": "v1beta1",
                "service": {"name": name, "namespace": plant.namespace}, "insecureSkipTLSVerify": true,
                "groupPriorityMinimum": 100, "versionPriority": 100,
            }}),
        ] {
            plant.apply(&object.to_string())?;
        }
        let registered = format!("apiservice/{REGISTRATION}");
        adapter.cluster.kubectl(&["wait", "--for=condition=Available", &registered, "--timeout=30s"])?;
        Ok(adapter)
    }
}

/// The external rules of the example, by the metric's name.
fn rules() -> Result<BTreeMap<String, Rule>> {
    let example = std::fs::read_to_string(stack::project().join("examples/prometheus-adapter.yaml"))?;
    let values: Value = serde_saphyr::from_str(&example)?;
    let rules = values["rules"]["external"].as_array().context("external rules")?.iter().map(|rule| {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        let series = text(&rule["seriesQuery"])?.split('{').next().unwrap_or_default().to_owned();
        anyhow::Ok((text(&rule["name"]["as"])?, Rule { series, query: text(&rule["metricsQuery"])? }))
    });
    rules.collect()
}

async fn metric(
    State(answers): State<Arc<Answers>>,
    Path((namespace, metric)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Json<Value>, (StatusCode, String)> {
    let unknown = || (StatusCode::NOT_FOUND, format!("no rule for {metric}"));
    let rule = answers.rules.get(&metric).ok_or_else(unknown)?;
    let query = query.unwrap_or_default();
    let mut query = url::form_urlencoded::parse(query.as_bytes());
    let selector = query.find(|(key, _)| key == "labelSelector").map(|(_, value)| value).unwrap_or_default();
    let labels = selector.split(',').filter_map(|label| label.split_once('='));
    let matchers = labels.chain([("namespace", &*namespace)]).map(|(key, value)| format!("{key}={value:?}"));
    let matchers = matchers.collect::<Vec<_>>().join(",");
    let asked = rule.query.replace("<<.Series>>", &rule.series).replace("<<.LabelMatchers>>", &matchers);
    let found = answers.prometheus.query(&asked).await;
    let found = found.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")))?;
    let now = jiff::Timestamp::now().to_string();
    let items = found.into_iter().map(|(labels, value)| {
        let value = format!("{:.0}m", value * 1000.0);
        json!({"metricName": metric, "metricLabels": labels, "timestamp": now, "value": value})
    });
    Ok(Json(json!({
        "kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {},
        "items": items.collect::<Vec<_>>(),
    })))
}

/// An API server speaks TLS only.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Tls {
    async fn bind(host: IpAddr) -> Result<Self> {
        let own = Authority::new("metrics")?.sign(&host.to_string())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(own.certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(own.key.as_bytes())?,
            )?;
        let listener = TcpListener::bind((host, 0)).await?;
        Ok(Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            if let Ok((stream, address)) = self.listener.accept().await
                && let Ok(stream) = self.acceptor.accept(stream).await
            {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}
