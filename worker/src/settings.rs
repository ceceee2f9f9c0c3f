//! From manifest, plan and secrets to what the worker needs; nothing else reads files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use penstock_crds::Manifest;
use penstock_crds::manifest::ManifestError;
use penstock_crds::pipeline::{self, ReceiveTime};
use penstock_crds::plan::{ShardPlan, Subscription};
use penstock_crds::reference::{KeyRef, SecretValue};
use penstock_crds::store::{TelemetryStore, TenantMode};
use penstock_crds::topic::Layout;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sqlx::postgres::PgConnectOptions;
use url::Url;

use crate::decode::{Decoder, Rules};
use crate::http;
use crate::ingest;
use crate::mqtt::options::{Login, Options, PROTOCOL_MAX_PACKET, Protocol};
use crate::store::connection;
use crate::store::lease::LeaseKey;

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
    /// The broker.
    pub broker: Options,
    /// The database, as a worker.
    pub database: PgConnectOptions,
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
}

/// What to subscribe, by which plan.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        if spec.source.mqtt.sessions > 1 {
            return Err(SettingsError::Unsupported {
                path: "spec.source.mqtt.sessions",
                problem: "this version opens one session; write 1",
            });
        }
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
            broker: self.broker(&manifest, max_in_hand)?,
            database: self.database(&store.database.url)?,
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
            readiness: http::Limits {
                max_queue_fill: f64::from(spec.readiness.max_queue_fill) / 100.0,
                max_unacked_age: spec.readiness.max_unacked_age.get(),
                max_stillness: (spec.source.mqtt.keep_alive.get() * 2).max(Duration::from_secs(30)),
            },
        })
    }

    fn layout(&self, manifest: &Manifest) -> Result<Layout, SettingsError> {
        Layout::parse(&manifest.pipeline.spec.source.mqtt.layout)
            .map_err(|(problem, _)| SettingsError::Plan { path: self.manifest.clone(), problem })
    }

    /// How to reach a database whose URL is a secret.
    pub fn database(&self, url: &SecretValue) -> Result<PgConnectOptions, SettingsError> {
        let reference = &url.secret_key_ref;
        connection::options(&self.secret(reference)?).map_err(|_| SettingsError::Value {
            name: reference.name.clone(),
            key: reference.key.clone(),
            problem: "not a database URL; write postgres://user:password@host:5432/database".to_owned(),
        })
    }

    fn secret(&self, reference: &KeyRef) -> Result<String, SettingsError> {
        let (file, variable) = (reference.path(&self.secrets), reference.variable());
        let value = std::fs::read_to_string(&file).ok().or_else(|| std::env::var(&variable).ok());
        value.map(|value| value.trim_end_matches(['\r', '\n']).to_owned()).ok_or_else(|| {
            SettingsError::Secret { name: reference.name.clone(), key: reference.key.clone(), file, variable }
        })
    }

    fn broker(&self, manifest: &Manifest, max_in_hand: usize) -> Result<Options, SettingsError> {
        let mqtt = &manifest.pipeline.spec.source.mqtt;
        let url = Url::parse(&mqtt.url).map_err(|_| SettingsError::Unsupported {
            path: "spec.source.mqtt.url",
            problem: "is not the URL of an MQTT broker",
        })?;
        let secure = url.scheme() == "mqtts";
        let login = match &mqtt.auth {
            None => None,
            Some(auth) => Some(Login {
                username: self.secret(&auth.username.secret_key_ref)?,
                password: self.secret(&auth.password.secret_key_ref)?,
            }),
        };
        Ok(Options {
            host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(if secure { 8883 } else { 1883 }),
            tls: if secure { Some(Arc::new(self.tls(mqtt)?)) } else { None },
            protocol: match mqtt.protocol {
                pipeline::Protocol::V5 => Protocol::V5,
                pipeline::Protocol::V311 => Protocol::V311,
            },
            client_id: manifest.client_id(self.shard),
            login,
            keep_alive: mqtt.keep_alive.get(),
            session_expiry: mqtt.session_expiry.get(),
            receive_maximum: mqtt.receive_maximum,
            max_packet: u32::try_from(max_in_hand).unwrap_or(u32::MAX).min(PROTOCOL_MAX_PACKET),
            clean: false,
        })
    }

    fn tls(&self, mqtt: &pipeline::Mqtt) -> Result<rustls::ClientConfig, SettingsError> {
        let wrong = |name: &str, key: &str, problem: String| SettingsError::Value {
            name: name.to_owned(),
            key: key.to_owned(),
            problem,
        };
        let mut roots = rustls::RootCertStore::empty();
        let tls = mqtt.tls.clone().unwrap_or_default();
        match tls.ca.and_then(|ca| ca.config_map_key_ref.or(ca.secret_key_ref)) {
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
            Some(reference) => {
                let pem = self.secret(&reference)?;
                let certificates: Result<Vec<_>, _> =
                    CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
                let certificates = certificates
                    .map_err(|error| wrong(&reference.name, &reference.key, error.to_string()))?;
                roots.add_parsable_certificates(certificates);
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("tls", "versions", error.to_string()))?
            .with_root_certificates(roots);
        let Some(own) = tls.client_certificate else { return Ok(builder.with_no_client_auth()) };
        let read = |key: &str| self.secret(&KeyRef { name: own.secret_name.clone(), key: key.to_owned() });
        let (certificate, key) = (read("tls.crt")?, read("tls.key")?);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
        let chain = chain.map_err(|error| wrong(&own.secret_name, "tls.crt", error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| wrong(&own.secret_name, "tls.key", error.to_string()))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| wrong(&own.secret_name, "tls.crt", error.to_string()))
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
