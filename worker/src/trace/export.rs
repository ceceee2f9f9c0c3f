//! Sends spans to the collector, in the background. A queue that is full and a collector that is away
//! cost spans and a counter, never a message.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::metrics::Metrics;

/// Spans that wait to be sent; about a kilobyte each.
const QUEUE: usize = 4096;
/// Spans in a request.
const REQUEST: usize = 512;
/// How long a span waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long a stopping worker waits for the collector.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Spans on their way to the collector.
#[derive(Debug)]
pub struct Queue {
    /// Gone once closed.
    sender: Mutex<Option<mpsc::Sender<SpanData>>>,
    task: Mutex<Option<JoinHandle<()>>>,
    metrics: Metrics,
}

impl Queue {
    /// Begins to send what is put into it. `why` tells what the exporter's error does not.
    pub fn new<E, W>(exporter: E, why: W, metrics: Metrics, runtime: &Handle) -> Self
    where
        E: SpanExporter + 'static,
        W: Fn() -> Option<String> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let sending = Sending { exporter, why, metrics: metrics.clone(), failing: false };
        let task = runtime.spawn(sending.run(receiver));
        Self { sender: Mutex::new(Some(sender)), task: Mutex::new(Some(task)), metrics }
    }

    /// Puts `count` spans in, which are made only if there is room for all.
    pub fn put<I: IntoIterator<Item = SpanData>>(&self, count: usize, spans: impl FnOnce() -> I) {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        match sender.as_ref().map(|sender| sender.try_reserve_many(count)) {
            Some(Ok(places)) => {
                for (place, span) in places.zip(spans()) {
                    place.send(span);
                }
            }
            _ => self.metrics.spans_dropped.with_label_values(&["queue_full"]).inc_by(count as u64),
        }
    }

    /// Sends what waits, for a moment at most.
    pub async fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(mut task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if tokio::time::timeout(LAST_WORDS, &mut task).await.is_err() {
            task.abort();
        }
    }
}

struct Sending<E, W> {
    exporter: E,
    why: W,
    metrics: Metrics,
    failing: bool,
}

impl<E: SpanExporter, W: Fn() -> Option<String>> Sending<E, W> {
    async fn run(mut self, mut queue: mpsc::Receiver<SpanData>) {
        while let Some(first) = queue.recv().await {
            let mut spans = vec![first];
            let fill = async {
                while spans.len() < REQUEST {
                    let room = REQUEST - spans.len();
                    if queue.recv_many(&mut spans, room).await == 0 {
                        return;
                    }
                }
            };
            let _ = tokio::time::timeout(LINGER, fill).await;
            self.send(spans).await;
        }
    }

    async fn send(&mut self, spans: Vec<SpanData>) {
        let count = spans.len() as u64;
        match self.exporter.export(spans).await {
            Ok(()) => {
                self.metrics.spans_exported.inc_by(count);
                if self.failing {
                    tracing::info!("traces reach the collector again");
                }
                self.failing = false;
            }
            Err(error) => {
                self.metrics.spans_dropped.with_label_values(&["not_sent"]).inc_by(count);
                if !self.failing {
                    let why = (self.why)().unwrap_or_else(|| error.to_string());
                    tracing::warn!(error = why, "traces do not reach the collector; they are dropped");
                }
                self.failing = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::trace::spans::tests::any_span;

    #[derive(Debug, Clone)]
    struct Collector {
        answers: Arc<Semaphore>,
        away: Arc<AtomicBool>,
    }

    impl Collector {
        fn silent() -> Self {
            Self { answers: Arc::new(Semaphore::new(0)), away: Arc::default() }
        }
    }

    impl SpanExporter for Collector {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            self.answers.acquire().await.unwrap().forget();
            if self.away.load(Ordering::SeqCst) {
                return Err(OTelSdkError::InternalFailure("away".to_owned()));
            }
            Ok(())
        }
    }

    fn dropped(metrics: &Metrics, reason: &str) -> u64 {
        metrics.spans_dropped.with_label_values(&[reason]).get()
    }

    async fn until(holds: impl Fn() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(LINGER / 50).await;
            }
        };
        tokio::time::timeout(LINGER * 20, wait).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_and_never_waits() {
        let metrics = Metrics::new().unwrap();
        let queue = Queue::new(Collector::silent(), || None, metrics.clone(), &Handle::current());
        for _ in 0..QUEUE + 10 {
            queue.put(1, || [any_span()]);
        }
        assert_eq!(dropped(&metrics, "queue_full"), 10);
        queue.put(6, || -> [SpanData; 6] { panic!("a span is made that there is no room for") });
        assert_eq!(dropped(&metrics, "queue_full"), 16);
    }

    #[tokio::test]
    async fn a_silent_collector_holds_the_exit_up_for_a_moment_only() {
        let metrics = Metrics::new().unwrap();
        let queue = Queue::new(Collector::silent(), || None, metrics, &Handle::current());
        queue.put(1, || [any_span()]);
        let begun = std::time::Instant::now();
        queue.close().await;
        let took = begun.elapsed();
        assert!(took >= LAST_WORDS && took < LAST_WORDS * 2, "{took:?}");
    }

    #[tokio::test]
    async fn what_waits_at_the_exit_is_sent_and_what_fails_is_counted() {
        let metrics = Metrics::new().unwrap();
        let collector = Collector::silent();
        collector.answers.add_permits(100);
        let queue = Queue::new(collector.clone(), || None, metrics.clone(), &Handle::current());
        queue.put(2, || [any_span(), any_span()]);
        until(|| metrics.spans_exported.get() == 2).await;
        collector.away.store(true, Ordering::SeqCst);
        queue.put(1, || [any_span()]);
        until(|| dropped(&metrics, "not_sent") == 1).await;
        collector.away.store(false, Ordering::SeqCst);
        let begun = std::time::Instant::now();
        queue.put(1, || [any_span()]);
        queue.close().await;
        assert_eq!(metrics.spans_exported.get(), 3);
        assert!(begun.elapsed() < LINGER, "the last spans wait for no others");
        queue.put(1, || [any_span()]);
        assert_eq!(dropped(&metrics, "queue_full"), 1);
    }
}
