//! One HTTP request to the collector, over a connection of its own, plain or with TLS.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Uri;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(3);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// Sends requests to the collector.
#[derive(Debug, Default)]
pub struct Client {
    tls: Option<Arc<rustls::ClientConfig>>,
    /// What failed last; the exporter's own error does not say.
    fault: Arc<Mutex<Option<String>>>,
}

impl Client {
    /// A client for `http`, or for `https` with the certificates that this machine trusts.
    pub fn new(secure: bool) -> Result<Self, rustls::Error> {
        if !secure {
            return Ok(Self::default());
        }
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { tls: Some(Arc::new(config)), ..Self::default() })
    }

    /// Where it says what failed last.
    pub fn fault(&self) -> Arc<Mutex<Option<String>>> {
        Arc::clone(&self.fault)
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let host = request.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = request.uri().port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let tcp = TcpStream::connect((host.as_str(), port)).await?;
        match &self.tls {
            None => send(tcp, request).await,
            Some(config) => {
                let name = rustls::pki_types::ServerName::try_from(host)?;
                send(TlsConnector::from(Arc::clone(config)).connect(name, tcp).await?, request).await
            }
        }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = tokio::time::timeout(DEADLINE, self.exchange(request))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}").into()));
        let fault = answer.as_ref().err().map(ToString::to_string);
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        answer
    }
}

async fn send<S>(stream: S, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the sender.
    tokio::spawn(connection);
    let (mut parts, body) = request.into_parts();
    if let Some(authority) = parts.uri.authority() {
        parts.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    }
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = path.parse::<Uri>()?;
    let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}
