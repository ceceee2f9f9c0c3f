//! Faults between an operator and the API server: a layer of its client, seeded, so that a run can be had
//! again.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body as HttpBody, Bytes, Frame};
use hyper::http::{Method, Request, Response, StatusCode, header};
use kube::Client;
use kube::client::{Body, ClientBuilder};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Sleep;
use tower::{Layer, Service};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What becomes of the calls of one client.
#[derive(Debug, Clone)]
pub struct Faults(Arc<State>);

#[derive(Debug)]
struct State {
    random: Mutex<fastrand::Rng>,
    /// Share of calls that fault.
    rate: f64,
    /// The write whose answer is not seen any more, nor anything after it.
    last_write: Option<u32>,
    writes: AtomicU32,
    crashed: watch::Sender<bool>,
    done: Mutex<BTreeMap<&'static str, u32>>,
}

/// One fault.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The server answers so.
    Refused(StatusCode, &'static str),
    /// The call comes late.
    Late(Duration),
    /// The server never hears of it.
    NotSent,
    /// The server does it, and the answer is lost.
    AnswerLost,
    /// A watch ends in the middle.
    Cut(Duration),
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::Refused(_, reason) => reason,
            Self::Late(_) => "Late",
            Self::NotSent => "NotSent",
            Self::AnswerLost => "AnswerLost",
            Self::Cut(_) => "Cut",
        }
    }
}

impl Faults {
    /// None.
    pub fn none() -> Self {
        Self::new(0, 0.0, None)
    }

    /// So many of all calls, by a seed.
    pub fn at_random(seed: u64, rate: f64) -> Self {
        Self::new(seed, rate, None)
    }

    /// After the n-th write has been done its answer does not come, nor does anything from then on.
    pub fn crash_after(write: u32) -> Self {
        Self::new(0, 0.0, Some(write))
    }

    fn new(seed: u64, rate: f64, last_write: Option<u32>) -> Self {
        Self(Arc::new(State {
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
            rate,
            last_write,
            writes: AtomicU32::new(0),
            crashed: watch::channel(false).0,
            done: Mutex::default(),
        }))
    }

    /// A client that has them.
    pub fn client(&self, config: kube::Config) -> anyhow::Result<Client> {
        Ok(ClientBuilder::try_from(config)?.with_layer(self).build())
    }

    /// Waits until the last write was done.
    pub async fn crashed(&self) {
        let _ = self.0.crashed.subscribe().wait_for(|crashed| *crashed).await;
    }

    /// Whether it was.
    pub fn has_crashed(&self) -> bool {
        *self.0.crashed.borrow()
    }

    /// How many there were of each.
    pub fn done(&self) -> BTreeMap<&'static str, u32> {
        self.0.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The next call's.
    fn draw(&self, method: &Method, is_watch: bool) -> Option<Fault> {
        let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
        if random.f64() >= self.0.rate {
            return None;
        }
        let refused = |code, reason| Fault::Refused(code, reason);
        let reads = method == Method::GET;
        let fault = match random.u32(0..if is_watch { 8 } else { 6 }) {
            0 if reads => refused(StatusCode::GONE, "Expired"),
            0 => refused(StatusCode::CONFLICT, "Conflict"),
            1 => refused(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            2 => refused(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            3 => Fault::Late(Duration::from_millis(random.u64(20..600))),
            4 => Fault::NotSent,
            5 => Fault::AnswerLost,
            _ => Fault::Cut(Duration::from_millis(random.u64(100..4000))),
        };
        *self.0.done.lock().unwrap_or_else(PoisonError::into_inner).entry(fault.name()).or_default() += 1;
        Some(fault)
    }

    /// Whether this is the last write that is done; never, if that was done before.
    async fn is_last(&self, writes: bool) -> bool {
        let Some(last) = self.0.last_write else { return false };
        let number = if writes { self.0.writes.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
        if *self.0.crashed.borrow() || number > last {
            std::future::pending::<()>().await;
        }
        number == last
    }
}

impl<S> Layer<S> for Faults {
    type Service = Faulty<S>;

    fn layer(&self, inner: S) -> Faulty<S> {
        Faulty { inner, faults: self.clone() }
    }
}

/// A service with faults.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S, B> Service<Request<Body>> for Faulty<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Send + 'static,
{
    type Response = Response<Answer<B>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let method = request.method().clone();
        let faults = self.faults.clone();
        // Nothing is sent before it is asked for its answer.
        let answer = self.inner.call(request);
        Box::pin(async move {
            let is_last = faults.is_last(method != Method::GET).await;
            let (mut cut, mut lost) = (None, false);
            match faults.draw(&method, is_watch) {
                None => {}
                Some(Fault::AnswerLost) => lost = true,
                Some(Fault::Refused(code, reason)) => return Ok(refusal(code, reason)?),
                Some(Fault::Late(time)) => tokio::time::sleep(time).await,
                Some(Fault::NotSent) => return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
                Some(Fault::Cut(after)) => cut = Some(Box::pin(tokio::time::sleep(after))),
            }
            let (parts, body) = answer.await.map_err(Into::into)?.into_parts();
            if is_last {
                faults.0.crashed.send_replace(true);
                std::future::pending::<()>().await;
            }
            if lost {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
            }
            Ok(Response::from_parts(parts, Answer::Real { body, cut }))
        })
    }
}

/// As the API server says no.
fn refusal<B>(code: StatusCode, reason: &str) -> Result<Response<Answer<B>>, hyper::http::Error> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a fault of the test", "reason": reason, "code": code.as_u16(),
    });
    let mut answer = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    if code == StatusCode::TOO_MANY_REQUESTS {
        answer = answer.header(header::RETRY_AFTER, "1");
    }
    answer.body(Answer::Made(Some(Bytes::from(status.to_string()))))
}

/// The body of an answer.
#[derive(Debug)]
pub enum Answer<B> {
    /// Not the server's.
    Made(Option<Bytes>),
    /// The server's, and when it breaks off.
    Real {
        /// What the server sends.
        body: B,
        /// When it ends too early.
        cut: Option<Pin<Box<Sleep>>>,
    },
}

impl<B> HttpBody for Answer<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Made(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Real { body, cut } => {
                if cut.as_mut().is_some_and(|cut| cut.as_mut().poll(context).is_ready()) {
                    return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::ConnectionReset).into())));
                }
                Pin::new(body).poll_frame(context).map_err(Into::into)
            }
        }
    }
}
