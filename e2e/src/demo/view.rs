//! What happens, while it happens: some lines redrawn in place, or a line each second.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::report::numbers::{count, duration};
use crate::sampler::{Sampler, Timeline, quantile};
use crate::worker::Metrics;

const REDRAW: Duration = Duration::from_millis(250);
const LINE: Duration = Duration::from_secs(1);

/// Where it is shown.
pub struct View {
    terminal: bool,
    /// Lines that the next drawing replaces.
    drawn: usize,
}

/// Shows it until it is aborted.
pub async fn keep(view: Arc<Mutex<View>>, sampler: Arc<Sampler>) {
    let period = view.lock().unwrap_or_else(PoisonError::into_inner).period();
    let mut ticks = tokio::time::interval(period);
    loop {
        ticks.tick().await;
        let now = Now::of(sampler.elapsed(), &sampler.timeline());
        if let Some(now) = now {
            view.lock().unwrap_or_else(PoisonError::into_inner).draw(&now);
        }
    }
}

impl View {
    /// On standard output.
    pub fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), drawn: 0 }
    }

    fn period(&self) -> Duration {
        if self.terminal { REDRAW } else { LINE }
    }

    /// A line that stays.
    pub fn event(&mut self, at: f64, what: &str) {
        let text = format!("{}{at:5.1} s  >> {what}\n", self.back());
        self.drawn = 0;
        write(&text);
    }

    fn draw(&mut self, now: &Now) {
        if !self.terminal {
            return write(&format!("{}\n", now.line()));
        }
        let lines = now.lines();
        let text = format!("{}{}\n", self.back(), lines.join("\n"));
        self.drawn = lines.len();
        write(&text);
    }

    /// To the first of the lines drawn last, which are removed.
    fn back(&self) -> String {
        if self.drawn > 0 { format!("\x1b[{}A\x1b[J", self.drawn) } else { String::new() }
    }
}

/// A reader that has gone away is no reason to end.
fn write(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// What is shown.
struct Now {
    at: f64,
    sent: f64,
    received: f64,
    stored: f64,
    deduplicated: f64,
    dead_lettered: f64,
    in_flight: Option<f64>,
    messages: f64,
    points: f64,
    p50: Option<f64>,
    p99: Option<f64>,
    state: &'static str,
}

impl Now {
    fn of(at: f64, timeline: &Timeline) -> Option<Self> {
        let (from, to) = timeline.recent(1.0)?;
        let last = &timeline.0[to];
        let total = |name: &str| timeline.total(|metrics| metrics.get(name));
        let latest = |name: &str| total(name)[to];
        let seconds = last.at - timeline.0[from].at;
        let rate = |name: &str| {
            let totals = total(name);
            if seconds > 0.0 { (totals[to] - totals[from]) / seconds } else { 0.0 }
        };
        let change = timeline.change(from, to);
        let latency = |q| quantile(change.as_ref()?, "ingest_latency_seconds", q);
        Some(Self {
            at,
            sent: last.sent as f64,
            received: latest("ingest_received_total"),
            stored: latest("ingest_outcomes_total/stored"),
            deduplicated: latest("ingest_outcomes_total/deduplicated"),
            dead_lettered: latest("ingest_outcomes_total/dead_lettered"),
            in_flight: last.metrics.as_ref().map(|metrics| metrics.get("ingest_in_flight")),
            messages: rate("ingest_committed_total"),
            points: rate("ingest_points_total"),
            p50: latency(0.5),
            p99: latency(0.99),
            state: state(last.metrics.as_deref()),
        })
    }

    fn line(&self) -> String {
        let Self { at, p50, p99, state, .. } = self;
        format!(
            "{at:5.1} s  received {}, stored {}, deduplicated {}, dead-lettered {}, in flight {}; {} messages/s, {} points/s, p50 {}, p99 {}; {state}",
            count(self.received),
            count(self.stored),
            count(self.deduplicated),
            count(self.dead_lettered),
            self.in_flight.map_or_else(|| "?".to_owned(), count),
            count(self.messages),
            count(self.points),
            time(*p50),
            time(*p99)
        )
    }

    /// Narrower than the usual 80 columns: a line that wraps cannot be redrawn.
    fn lines(&self) -> Vec<String> {
        let number = |value: f64| format!("{:>10}", count(value));
        vec![
            String::new(),
            format!(" {:5.1} s   worker: {}", self.at, self.state),
            format!(
                " messages   published  {}   received      {}   in flight {}",
                number(self.sent),
                number(self.received),
                self.in_flight.map_or_else(|| format!("{:>10}", "?"), number)
            ),
            format!(
                " items      stored     {}   deduplicated  {}   dead      {}",
                number(self.stored),
                number(self.deduplicated),
                number(self.dead_lettered)
            ),
            format!(
                " rate       messages/s {}   points/s      {}",
                number(self.messages),
                number(self.points)
            ),
            format!(" latency    p50        {:>10}   p99           {:>10}", time(self.p50), time(self.p99)),
        ]
    }
}

fn time(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), duration)
}

fn state(metrics: Option<&Metrics>) -> &'static str {
    match metrics {
        None => "away",
        Some(metrics) if metrics.get("ingest_mqtt_connected") == 0.0 => "no broker",
        Some(metrics) if metrics.get("ingest_db_breaker_state") > 0.0 => "no database",
        Some(_) => "connected",
    }
}
