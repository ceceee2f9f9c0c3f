//! From manifest, plan and secrets to what the worker needs; nothing else reads files.

use std::path::PathBuf;
use std::sync::Arc;

use penstock_crds::Manifest;
use penstock_crds::manifest::ManifestError;
use penstock_crds::store::TelemetryStore;

pub use self::access::{Access, Reload};
pub use self::terms::{Follow, Terms, Work};
use crate::store::lease::LeaseKey;
use crate::trace;

mod access;
mod terms;

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

impl SettingsError {
    /// A bounded word for what is wrong.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::File { .. } => "manifest_missing",
            Self::Manifest(_) | Self::Unsupported { .. } => "manifest_wrong",
            Self::Plan { .. } => "plan_wrong",
            Self::Secret { .. } => "secret_missing",
            Self::Value { .. } => "secret_wrong",
        }
    }
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
    /// Sessions that the shard's filters are divided between.
    pub sessions: usize,
    /// The byte budget of all deliveries in hand.
    pub max_in_hand: usize,
    /// Where traces go, if anywhere.
    pub tracing: Option<trace::Options>,
    /// Broker and database, as they are reached at the start.
    pub access: Access,
    /// What is followed while the worker runs, as it is at the start.
    pub terms: Arc<Terms>,
    /// All of it, as it was written.
    pub manifest: Manifest,
}

impl Sources {
    /// The manifest alone, checked.
    pub fn manifest(&self) -> Result<Manifest, SettingsError> {
        Ok(Manifest::parse(&terms::read(&self.manifest)?)?)
    }

    /// The store alone, checked.
    pub fn store(&self) -> Result<TelemetryStore, SettingsError> {
        Ok(Manifest::parse_store(&terms::read(&self.manifest)?)?)
    }

    /// All that the worker needs.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let texts = self.texts()?;
        let manifest = Manifest::parse(&texts.manifest)?;
        let spec = &manifest.pipeline.spec;
        let tracing = spec.tracing.as_ref().map(|tracing| {
            let endpoint =
                url::Url::parse(&tracing.otlp_endpoint).map_err(|_| SettingsError::Unsupported {
                    path: "spec.tracing.otlpEndpoint",
                    problem: "is not the URL of an OTLP collector",
                })?;
            let layout = spec.source.mqtt.layout.clone();
            Ok::<_, SettingsError>(trace::Options { endpoint, ratio: tracing.ratio, layout })
        });
        Ok(Settings {
            pipeline: manifest.pipeline_name().into(),
            shard: self.shard,
            sessions: spec.source.mqtt.sessions.into(),
            max_in_hand: spec.batch.max_in_hand.bytes() as usize,
            tracing: tracing.transpose()?,
            access: self.access(&manifest)?,
            terms: Arc::new(self.terms(&texts, &manifest)?),
            manifest,
        })
    }
}

impl Settings {
    /// The key of the shard's lease.
    pub fn lease_key(&self) -> LeaseKey {
        LeaseKey(format!("{}/{}", self.pipeline, self.shard))
    }
}
