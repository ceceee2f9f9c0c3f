//! From manifest, plan and secrets to what the worker needs; nothing else reads files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::Manifest;
use penstock_crds::manifest::ManifestError;
use penstock_crds::pipeline::{Rebirth, ReceiveTime, Subscription};
use penstock_crds::plan::ShardPlan;
use penstock_crds::store::{TelemetryStore, TenantMode};
use penstock_crds::topic::Layout;

pub use self::access::{Access, Reload};
use crate::decode::{Decoder, Rules};
use crate::http;
use crate::ingest;
use crate::store::lease::LeaseKey;
use crate::trace;

mod access;

/// Why settings cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The manifest is wrong.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The plan is wrong.
    #[error("{path}: {problem}", path = path.display())]
    Plan {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A secret is missing.
    #[error("the value of {name}/{key} is missing; put it into the file {file} or the variable {variable}", file = file.display())]
    Secret {
        /// The Secret's name.
        name: String,
        /// The Secret's key.
        key: String,
        /// Where it was looked for.
        file: PathBuf,
        /// Where else.
        variable: String,
    },
    /// A secret's value cannot be used. The text holds nothing of it.
    #[error("the value of {name}/{key} is {problem}")]
    Value {
        /// The Secret's name.
        name: String,
        /// The Secret's key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field asks for what this version does not do.
    #[error("{path}: {problem}")]
    Unsupported {
        /// The field.
        path: &'static str,
        /// What would be right.
        problem: &'static str,
    },
}

/// Where the worker finds what it reads.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The manifest.
    pub manifest: PathBuf,
    /// The plan; without one this shard owns all keys.
    pub plan: Option<PathBuf>,
    /// Folder of mounted secrets.
    pub secrets: PathBuf,
    /// The shard's number.
    pub shard: u32,
}

/// What the worker needs.
#[derive(Debug)]
pub struct Settings {
    /// Namespace and name of the pipeline.
    pub pipeline: Arc<str>,
    /// The shard's number.
    pub shard: u32,
    /// What to subscribe.
    pub work: Work,
    /// Sessions that the shard's filters are divided between.
    pub sessions: usize,
    /// Broker and database, as they are reached at the start.
    pub access: Access,
    /// What a topic's levels mean.
    pub layout: Layout,
    /// Which times and sizes are accepted.
    pub rules: Rules,
    /// Who may store; everybody, if not given.
    pub tenants: Option<Vec<String>>,
    /// Most series of a tenant.
    pub max_series: i32,
    /// Series that a tenant may begin in a minute, if that is limited.
    pub new_series_per_minute: Option<u32>,
    /// Size of a batch.
    pub batch: ingest::Limits,
    /// The byte budget of all deliveries in hand.
    pub max_in_hand: usize,
    /// When the worker is ready.
    pub readiness: http::Limits,
    /// Whether to ask Sparkplug's edge nodes for their births.
    pub asks_for_births: bool,
    /// Where traces go, if anywhere.
    pub tracing: Option<trace::Options>,
}

/// What to subscribe, by which plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The plan's generation.
    pub generation: i64,
    /// Filters and formats.
    pub subscriptions: Vec<Subscription>,
}

impl Work {
    /// The filters alone.
    pub fn filters(&self) -> Arc<[String]> {
        self.subscriptions.iter().map(|subscription| subscription.filter.clone()).collect()
    }
}

fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::File { path: path.to_owned(), source })
}

impl Sources {
    /// The manifest alone, checked.
    pub fn manifest(&self) -> Result<Manifest, SettingsError> {
        Ok(Manifest::parse(&read(&self.manifest)?)?)
    }

    /// The store alone, checked.
    pub fn store(&self) -> Result<TelemetryStore, SettingsError> {
        Ok(Manifest::parse_store(&read(&self.manifest)?)?)
    }

    /// What to subscribe, read anew.
    pub fn work(&self) -> Result<Work, SettingsError> {
        self.work_of(&self.manifest()?)
    }

    fn work_of(&self, manifest: &Manifest) -> Result<Work, SettingsError> {
        let spec = &manifest.pipeline.spec;
        let plan = match &self.plan {
            None => ShardPlan::whole(spec, self.shard),
            Some(path) => {
                let wrong = |problem: String| SettingsError::Plan { path: path.clone(), problem };
                let plan = ShardPlan::parse(&read(path)?).map_err(wrong)?;
                if plan.shard != self.shard {
                    return Err(wrong(format!(
                        "it is the plan of shard {}, not of {}",
                        plan.shard, self.shard
                    )));
                }
                plan
            }
        };
        Ok(Work {
            generation: plan.generation,
            subscriptions: plan.subscriptions(spec, &manifest.client_id_prefix()),
        })
    }

    /// All that the worker needs.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let manifest = self.manifest()?;
        let (spec, store) = (&manifest.pipeline.spec, &manifest.store.spec);
        let tracing = spec.tracing.as_ref().map(|tracing| {
            let endpoint =
                url::Url::parse(&tracing.otlp_endpoint).map_err(|_| SettingsError::Unsupported {
                    path: "spec.tracing.otlpEndpoint",
                    problem: "is not the URL of an OTLP collector",
                })?;
            let layout = spec.source.mqtt.layout.clone();
            Ok::<_, SettingsError>(trace::Options { endpoint, ratio: tracing.ratio, layout })
        });
        let max_in_hand = spec.batch.max_in_hand.bytes() as usize;
        let rules = Rules {
            max_age: spec.accept.max_age.get(),
            max_ahead: spec.accept.max_ahead.get(),
            receive_time: spec.accept.receive_time == ReceiveTime::Allow,
            max_payload: spec.source.mqtt.max_packet_size.bytes() as usize,
        };
        Ok(Settings {
            pipeline: manifest.pipeline_name().into(),
            shard: self.shard,
            work: self.work_of(&manifest)?,
            sessions: spec.source.mqtt.sessions.into(),
            access: self.access(&manifest)?,
            layout: self.layout(&manifest)?,
            rules,
            tenants: (store.tenants.mode == TenantMode::Listed).then(|| store.tenants.names.clone()),
            max_series: store.tenants.max_series,
            new_series_per_minute: store.tenants.new_series_per_minute,
            batch: ingest::Limits {
                max_rows: spec.batch.max_rows as usize,
                max_bytes: spec.batch.max_bytes.bytes() as usize,
                linger: spec.batch.linger.get(),
            },
            max_in_hand,
            asks_for_births: spec.source.mqtt.sparkplug.rebirth == Rebirth::Ask,
            readiness: http::Limits {
                max_queue_fill: f64::from(spec.readiness.max_queue_fill) / 100.0,
                max_unacked_age: spec.readiness.max_unacked_age.get(),
                max_stillness: (spec.source.mqtt.keep_alive.get() * 2).max(Duration::from_secs(30)),
            },
            tracing: tracing.transpose()?,
        })
    }

    fn layout(&self, manifest: &Manifest) -> Result<Layout, SettingsError> {
        Layout::parse(&manifest.pipeline.spec.source.mqtt.layout)
            .map_err(|(problem, _)| SettingsError::Plan { path: self.manifest.clone(), problem })
    }
}

impl Settings {
    /// The decoder of the pipeline's messages.
    pub fn decoder(&self) -> Decoder {
        let tenants = self.tenants.as_ref().map(|names| names.iter().cloned().collect());
        Decoder::new(self.layout.clone(), self.rules, tenants)
    }

    /// The key of the shard's lease.
    pub fn lease_key(&self) -> LeaseKey {
        LeaseKey(format!("{}/{}", self.pipeline, self.shard))
    }
}
