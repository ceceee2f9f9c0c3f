//! Logins, certificates and the database's URL: read from mounted files, and anew when these change.
//!
//! What changed is used for the next connection; the present ones stay. Errors name a file and never
//! show what is in it.

use std::sync::Arc;

use penstock_crds::Manifest;
use penstock_crds::reference::KeyRef;
use penstock_crds::report::Reason;
use penstock_crds::source::{self, Tls};
use penstock_crds::store::Database;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::sync::watch;
use url::Url;

use super::{SettingsError, Sources};
use crate::mqtt::options::{Login, Options, PROTOCOL_MAX_PACKET, Protocol};
use crate::store::connection;

/// How to reach broker and database.
#[derive(Debug, Clone)]
pub struct Access {
    /// The broker.
    pub broker: Options,
    /// The database, as a worker.
    pub database: PgConnectOptions,
}

/// What the files hold. Without `Debug`: all of it is secret.
#[derive(Clone, PartialEq, Eq)]
struct Values {
    login: Option<(String, String)>,
    broker: Pems,
    url: String,
    database: Pems,
}

/// The PEM texts of a TLS section.
#[derive(Clone, Default, PartialEq, Eq)]
struct Pems {
    ca: Option<String>,
    own: Option<(String, String)>,
}

/// Reads the files that the manifest of the start names, again and again.
pub struct Reload {
    sources: Sources,
    manifest: Manifest,
    /// What was read last, good or not.
    read: Option<Values>,
    /// What is wrong with it.
    fault: Option<Reason>,
}

impl Reload {
    /// Nothing is read yet.
    pub fn new(sources: Sources, manifest: Manifest) -> Self {
        Self { sources, manifest, read: None, fault: None }
    }

    /// Hands on what changed. Files that are missing or wrong change nothing, and are told once; returns
    /// what is wrong.
    pub fn look(&mut self, access: &watch::Sender<Access>) -> Option<Reason> {
        let first = self.read.is_none() && self.fault.is_none();
        let read = self.sources.values(&self.manifest).and_then(|values| {
            if self.read.as_ref() == Some(&values) {
                return Ok(None);
            }
            let next = self.sources.access_of(&self.manifest, &values);
            self.read = Some(values);
            next.map(Some)
        });
        match read {
            Ok(None) => {}
            Ok(Some(next)) => {
                self.fault = None;
                access.send_replace(next);
                if !first {
                    tracing::info!("credentials were read anew; new connections use them");
                }
            }
            Err(error) => {
                if matches!(error, SettingsError::Secret { .. }) {
                    // So that it is taken when it comes back, also as it was.
                    self.read = None;
                }
                let fault = Some((error.reason().to_owned(), error.to_string()));
                if self.fault != fault {
                    tracing::error!(reason = error.reason(), %error, "keeping the last good credentials");
                    self.fault = fault;
                }
            }
        }
        self.fault.clone()
    }
}

impl Sources {
    /// How to reach broker and database.
    pub fn access(&self, manifest: &Manifest) -> Result<Access, SettingsError> {
        self.access_of(manifest, &self.values(manifest)?)
    }

    /// How to reach one database.
    pub fn database(&self, database: &Database) -> Result<PgConnectOptions, SettingsError> {
        let url = self.secret(&database.url.secret_key_ref)?;
        database_options(database, &url, &self.pems(database.tls.as_ref())?)
    }

    fn values(&self, manifest: &Manifest) -> Result<Values, SettingsError> {
        let (mqtt, database) = (&manifest.pipeline.spec.source.mqtt, &manifest.store.spec.database);
        let login = mqtt.auth.as_ref().map(|auth| {
            Ok::<_, SettingsError>((
                self.secret(&auth.username.secret_key_ref)?,
                self.secret(&auth.password.secret_key_ref)?,
            ))
        });
        Ok(Values {
            login: login.transpose()?,
            broker: self.pems(mqtt.tls.as_ref())?,
            url: self.secret(&database.url.secret_key_ref)?,
            database: self.pems(database.tls.as_ref())?,
        })
    }

    fn pems(&self, tls: Option<&Tls>) -> Result<Pems, SettingsError> {
        let Some(tls) = tls else { return Ok(Pems::default()) };
        let ca = ca_of(tls).map(|reference| self.secret(reference));
        let own = tls.client_certificate.as_ref().map(|own| {
            let read = |key: &str| self.secret(&key_of(&own.secret_name, key));
            Ok::<_, SettingsError>((read("tls.crt")?, read("tls.key")?))
        });
        Ok(Pems { ca: ca.transpose()?, own: own.transpose()? })
    }

    fn secret(&self, reference: &KeyRef) -> Result<String, SettingsError> {
        let (file, variable) = (reference.path(&self.secrets), reference.variable());
        let value = std::fs::read_to_string(&file).ok().or_else(|| std::env::var(&variable).ok());
        value.map(|value| value.trim_end_matches(['\r', '\n']).to_owned()).ok_or_else(|| {
            SettingsError::Secret { name: reference.name.clone(), key: reference.key.clone(), file, variable }
        })
    }

    fn access_of(&self, manifest: &Manifest, values: &Values) -> Result<Access, SettingsError> {
        let (spec, database) = (&manifest.pipeline.spec, &manifest.store.spec.database);
        let mqtt = &spec.source.mqtt;
        let url = Url::parse(&mqtt.url).map_err(|_| SettingsError::Unsupported {
            path: "spec.source.mqtt.url",
            problem: "is not the URL of an MQTT broker",
        })?;
        let secure = url.scheme() == "mqtts";
        let tls = if secure { Some(Arc::new(client(mqtt.tls.as_ref(), &values.broker)?)) } else { None };
        let max_in_hand = spec.batch.max_in_hand.bytes();
        Ok(Access {
            broker: Options {
                host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
                port: url.port().unwrap_or(if secure { 8883 } else { 1883 }),
                tls,
                protocol: match mqtt.protocol {
                    source::Protocol::V5 => Protocol::V5,
                    source::Protocol::V311 => Protocol::V311,
                },
                client_id: manifest.client_id(self.shard),
                login: values.login.clone().map(|(username, password)| Login { username, password }),
                keep_alive: mqtt.keep_alive.get(),
                session_expiry: mqtt.session_expiry.get(),
                receive_maximum: mqtt.receive_maximum,
                max_packet: u32::try_from(max_in_hand).unwrap_or(u32::MAX).min(PROTOCOL_MAX_PACKET),
                clean: false,
            },
            database: database_options(database, &values.url, &values.database)?,
        })
    }
}

fn ca_of(tls: &Tls) -> Option<&KeyRef> {
    tls.ca.as_ref().and_then(|ca| ca.config_map_key_ref.as_ref().or(ca.secret_key_ref.as_ref()))
}

fn key_of(name: &str, key: &str) -> KeyRef {
    KeyRef { name: name.to_owned(), key: key.to_owned() }
}

fn wrong(reference: &KeyRef, problem: impl Into<String>) -> SettingsError {
    SettingsError::Value { name: reference.name.clone(), key: reference.key.clone(), problem: problem.into() }
}

fn database_options(database: &Database, url: &str, pems: &Pems) -> Result<PgConnectOptions, SettingsError> {
    let at_url = |problem: &str| wrong(&database.url.secret_key_ref, problem);
    let options = connection::options(url)
        .map_err(|_| at_url("not a database URL; write postgres://user:password@host:5432/database"))?;
    let Some(tls) = &database.tls else { return Ok(options) };
    let mut options = match options.get_ssl_mode() {
        PgSslMode::VerifyFull | PgSslMode::VerifyCa => options,
        // The mode of a URL that names none.
        PgSslMode::Prefer => options.ssl_mode(PgSslMode::VerifyFull),
        _ => {
            return Err(at_url(
                "a URL whose sslmode verifies nothing, although tls is given; leave sslmode out, or write verify-full",
            ));
        }
    };
    // Looked at here, so that a wrong file is named, and not found out at a connection.
    client(Some(tls), pems)?;
    if let Some(ca) = &pems.ca {
        options = options.ssl_root_cert_from_pem(ca.clone().into_bytes());
    }
    if let Some((certificate, key)) = &pems.own {
        options = options.ssl_client_cert_from_pem(certificate).ssl_client_key_from_pem(key);
    }
    Ok(options)
}

/// A TLS client that trusts the given authorities, or the system's.
fn client(tls: Option<&Tls>, pems: &Pems) -> Result<rustls::ClientConfig, SettingsError> {
    let mut roots = rustls::RootCertStore::empty();
    match (tls.and_then(ca_of), &pems.ca) {
        (Some(reference), Some(pem)) => {
            for certificate in certificates(reference, pem)? {
                roots.add(certificate).map_err(|_| wrong(reference, NO_CERTIFICATE))?;
            }
        }
        _ => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| SettingsError::Unsupported { path: "tls", problem: "this build has no TLS version" })?
        .with_root_certificates(roots);
    let own = tls.and_then(|tls| tls.client_certificate.as_ref());
    let (Some(own), Some((certificate, key))) = (own, &pems.own) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&key_of(&own.secret_name, "tls.crt"), certificate)?;
    let key_file = key_of(&own.secret_name, "tls.key");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| wrong(&key_file, "no private key in PEM"))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|_| wrong(&key_file, "not the key of the certificate in tls.crt beside it"))
}

const NO_CERTIFICATE: &str = "no certificate in PEM";

/// The library's own errors quote the file, which may be a key by mistake.
fn certificates(reference: &KeyRef, pem: &str) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(wrong(reference, NO_CERTIFICATE)),
    }
}

#[cfg(test)]
mod tests;
