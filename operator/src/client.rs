//! The way to the API server of a process that leads for a time: after it nothing is written.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::{Method, Request, Response};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::{Client, Config};
use tower::{BoxError, Service, ServiceBuilder};

/// Until when this process may write. It may not before the first, nor after the last.
#[derive(Debug, Clone, Default)]
pub struct Tenure(Arc<Mutex<Option<Instant>>>);

impl Tenure {
    /// From now until then.
    pub fn extend(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// It is over.
    pub fn end(&self) {
        self.extend(None);
    }

    /// When it ends, if it began.
    pub fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holds(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }
}

/// A write of a process that does not lead.
#[derive(Debug, thiserror::Error)]
#[error("this replica does not lead; nothing was written")]
pub struct NotLeading;

/// A client whose connections end when the API server does not confirm for `delivery` what it was sent:
/// otherwise the kernel would deliver it whenever the network is back, even of a process that is gone.
/// For the same reason nothing is tried again here. With a tenure only reads pass outside of it.
pub fn connect(config: &Config, delivery: Duration, tenure: Option<Tenure>) -> Result<Client, kube::Error> {
    if let Some(url) = &config.proxy_url {
        let proxy_url = Box::new(url.clone());
        return Err(kube::Error::ProxyProtocolUnsupported { proxy_url });
    }
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_tcp_user_timeout(Some(delivery));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connector)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let http: Http<_, Body> = Http::builder(TokioExecutor::new()).build(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .service(Fence { inner: http, tenure });
    Ok(Client::new(service, config.default_namespace.clone()))
}

/// Lets writes pass during the tenure.
#[derive(Clone)]
struct Fence<S> {
    inner: S,
    tenure: Option<Tenure>,
}

impl<S, B> Service<Request<Body>> for Fence<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let tenure = self.tenure.clone().filter(|_| request.method() != Method::GET);
        let answer = self.inner.call(request);
        // Asked when the request is about to leave, not when it was made.
        Box::pin(async move {
            match tenure {
                Some(tenure) if !tenure.holds() => Err(NotLeading.into()),
                _ => answer.await.map_err(Into::into),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn writes_pass_only_during_the_tenure_and_reads_always() {
        let inner = tower::service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(())) });
        let tenure = Tenure::default();
        let fence = Fence { inner, tenure: Some(tenure.clone()) };
        let passes = async |method: Method| {
            let mut request = Request::new(Body::empty());
            *request.method_mut() = method;
            fence.clone().call(request).await.is_ok()
        };
        let writes = [Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        for until in [None, Some(Instant::now()), Some(Instant::now() + Duration::from_mins(1))] {
            tenure.extend(until);
            assert!(passes(Method::GET).await);
            for write in writes.clone() {
                assert_eq!(passes(write).await, tenure.holds(), "until {until:?}");
            }
        }
        let mut late = Request::new(Body::empty());
        *late.method_mut() = Method::PATCH;
        let made_in_time = fence.clone().call(late);
        tenure.end();
        assert!(made_in_time.await.is_err(), "made in time, and sent too late");
    }
}
