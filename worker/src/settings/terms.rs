//! What a running worker follows: read from its manifest and plan, and anew when these change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::Manifest;
use penstock_crds::pipeline::{ReceiveTime, ShardBy};
use penstock_crds::plan::{ShardPlan, files_digest, restart_digest};
use penstock_crds::report::{PlanStatus, Reason};
use penstock_crds::source::{Rebirth, Subscription};
use penstock_crds::store::TenantMode;
use penstock_crds::topic::Layout;
use tokio::sync::watch;

use super::{SettingsError, Sources};
use crate::decode::{Decoder, Rules};
use crate::delivery::Delivery;
use crate::formats::Formats;
use crate::http;
use crate::ingest;

/// A folder of a Kubernetes volume is swapped by this link.
const VERSION: &str = "..data";
/// How often a folder may be swapped while it is read.
const TRIES: usize = 3;

/// What a running worker follows. A delivery is read by the terms of the moment in which it is decoded.
#[derive(Debug)]
pub struct Terms {
    /// Digest of the files that say it.
    pub digest: String,
    /// What to subscribe.
    pub work: Work,
    /// What keys are.
    pub sharding: ShardBy,
    /// How a topic's payloads are read.
    pub formats: Formats,
    /// Reads messages: topics' layout, times and sizes that are accepted, tenants that may store.
    pub decoder: Decoder,
    /// Most series of a tenant.
    pub max_series: i32,
    /// Series that a tenant may begin in a minute, if that is limited.
    pub new_series_per_minute: Option<u32>,
    /// Size of a batch.
    pub batch: ingest::Limits,
    /// When the worker is ready.
    pub readiness: http::Limits,
    /// Whether to ask Sparkplug's edge nodes for their births.
    pub asks_for_births: bool,
}

/// What to subscribe, by which plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Work {
    /// The plan's generation.
    pub generation: i64,
    /// Its keys.
    pub keys: Vec<String>,
    /// Filters and formats.
    pub subscriptions: Vec<Subscription>,
}

impl Work {
    /// The filters alone.
    pub fn filters(&self) -> Arc<[String]> {
        self.subscriptions.iter().map(|subscription| subscription.filter.clone()).collect()
    }

    /// For `/status`.
    pub fn status(&self) -> PlanStatus {
        PlanStatus { generation: self.generation, keys: Some(self.keys.clone()) }
    }
}

/// The texts of manifest and plan, of one version.
pub(super) struct Texts {
    pub(super) manifest: String,
    plan: Option<String>,
}

impl Texts {
    fn digest(&self) -> String {
        files_digest(&self.manifest, self.plan.as_deref().unwrap_or_default())
    }
}

impl Sources {
    /// Both files. Where Kubernetes swaps their folder, both are read of the same version.
    pub(super) fn texts(&self) -> Result<Texts, SettingsError> {
        let mut tries = 0..TRIES;
        loop {
            let version = self.manifest.parent().and_then(|folder| folder.join(VERSION).canonicalize().ok());
            let read = |path: &Path| read(&self.of_version(path, version.as_deref()));
            let texts = read(&self.manifest).and_then(|manifest| {
                Ok(Texts { manifest, plan: self.plan.as_deref().map(read).transpose()? })
            });
            match texts {
                // Maybe removed after a swap.
                Err(_) if version.is_some() && tries.next().is_some() => {}
                texts => return texts,
            }
        }
    }

    fn of_version(&self, path: &Path, version: Option<&Path>) -> PathBuf {
        match (version, path.file_name()) {
            (Some(version), Some(name)) if path.parent() == self.manifest.parent() => version.join(name),
            _ => path.to_owned(),
        }
    }

    /// What the files say now; nothing where they are as they were for `terms`.
    fn changed(&self, terms: &Terms) -> Result<Option<(Manifest, Terms)>, SettingsError> {
        let texts = self.texts()?;
        if texts.digest() == terms.digest {
            return Ok(None);
        }
        let manifest = Manifest::parse(&texts.manifest)?;
        let next = self.terms(&texts, &manifest)?.after(terms);
        Ok(Some((manifest, next)))
    }

    pub(super) fn terms(&self, texts: &Texts, manifest: &Manifest) -> Result<Terms, SettingsError> {
        let (spec, store) = (&manifest.pipeline.spec, &manifest.store.spec);
        let mqtt = &spec.source.mqtt;
        let rules = Rules {
            max_age: spec.accept.max_age.get(),
            max_ahead: spec.accept.max_ahead.get(),
            receive_time: spec.accept.receive_time == ReceiveTime::Allow,
            max_payload: mqtt.max_packet_size.bytes() as usize,
        };
        let layout = Layout::parse(&mqtt.layout)
            .map_err(|(problem, _)| SettingsError::Plan { path: self.manifest.clone(), problem })?;
        let listed = store.tenants.mode == TenantMode::Listed;
        let tenants = listed.then(|| store.tenants.names.iter().cloned().collect());
        Ok(Terms {
            digest: texts.digest(),
            work: self.work(texts.plan.as_deref(), manifest)?,
            sharding: spec.sharding.by,
            formats: Formats::new(&mqtt.subscriptions),
            decoder: Decoder::new(layout, rules, tenants),
            max_series: store.tenants.max_series,
            new_series_per_minute: store.tenants.new_series_per_minute,
            batch: ingest::Limits {
                max_rows: spec.batch.max_rows as usize,
                max_bytes: spec.batch.max_bytes.bytes() as usize,
                linger: spec.batch.linger.get(),
            },
            readiness: http::Limits {
                max_queue_fill: f64::from(spec.readiness.max_queue_fill) / 100.0,
                max_unacked_age: spec.readiness.max_unacked_age.get(),
                max_stillness: (mqtt.keep_alive.get() * 2).max(Duration::from_secs(30)),
            },
            asks_for_births: mqtt.sparkplug.rebirth == Rebirth::Ask,
        })
    }

    fn work(&self, plan: Option<&str>, manifest: &Manifest) -> Result<Work, SettingsError> {
        let spec = &manifest.pipeline.spec;
        let plan = match (plan, &self.plan) {
            (Some(text), Some(path)) => {
                let wrong = |problem: String| SettingsError::Plan { path: path.clone(), problem };
                let plan = ShardPlan::parse(text).map_err(wrong)?;
                if plan.shard != self.shard {
                    return Err(wrong(format!(
                        "it is the plan of shard {}, not of {}",
                        plan.shard, self.shard
                    )));
                }
                plan
            }
            _ => ShardPlan::whole(spec, self.shard),
        };
        let subscriptions = plan.subscriptions(spec, &manifest.client_id_prefix());
        Ok(Work { generation: plan.generation, keys: plan.keys, subscriptions })
    }
}

pub(super) fn read(path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|source| SettingsError::File { path: path.to_owned(), source })
}

impl Terms {
    /// The key that a delivery belongs to; none where nothing is divided.
    pub fn key_of<'a>(&'a self, delivery: &'a Delivery) -> Option<&'a str> {
        match self.sharding {
            ShardBy::Topic => self.formats.filter_of(&delivery.topic),
            ShardBy::Tenant => delivery.tenant.as_deref(),
            ShardBy::Shared => None,
        }
    }

    /// These after others: what Sparkplug's births said is still known, and what is on its way by filters
    /// that are no longer here is read as it was.
    fn after(self, before: &Self) -> Self {
        Self {
            decoder: self.decoder.knowing(&before.decoder),
            formats: self.formats.after(&before.formats),
            ..self
        }
    }
}

/// Looks at the files again and again, and hands on what changed.
#[derive(Debug)]
pub struct Follow {
    sources: Sources,
    /// Digest of what is read only at a start.
    fixed: String,
    fault: Option<Reason>,
}

impl Follow {
    /// For a worker that started with this manifest.
    pub fn new(sources: Sources, manifest: &Manifest) -> Self {
        Self { sources, fixed: fixed(manifest), fault: None }
    }

    /// Hands on what changed. A wrong file changes nothing, and is told once; returns what is wrong.
    pub fn look(&mut self, terms: &watch::Sender<Arc<Terms>>) -> Option<Reason> {
        let changed = self.sources.changed(&terms.borrow());
        let fault = match changed {
            Ok(None) => None,
            Ok(Some((manifest, next))) => {
                tracing::info!(digest = next.digest, "following changed files");
                if self.fixed != fixed(&manifest) {
                    tracing::warn!(
                        "the next start takes over what else changed: how broker and database are reached, sessions, \
                         traces or maxInHand"
                    );
                }
                terms.send_replace(Arc::new(next));
                None
            }
            Err(error) => Some((error.reason().to_owned(), error.to_string())),
        };
        if self.fault != fault {
            if let Some((reason, error)) = &fault {
                tracing::error!(reason, error, "keeping the last good manifest and plan");
            }
            self.fault = fault;
        }
        self.fault.clone()
    }
}

fn fixed(manifest: &Manifest) -> String {
    restart_digest(&manifest.pipeline.spec, &manifest.store.spec)
}

#[cfg(test)]
mod tests;
