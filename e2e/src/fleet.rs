//! A fleet of devices whose messages can be computed again, and the ledger of what it published.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use tokio::task::JoinSet;

use crate::publisher::{Outgoing, Progress, Publisher};

/// Tenants `t0` and so on, to whom devices belong in turn: as many as `examples/plant.yaml` has filters of.
pub const TENANTS: u32 = 6;

/// Points of a message of a steady fleet.
pub const POINTS: u32 = 4;

/// What a device published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Samples.
    Telemetry,
    /// An answer to a command.
    Ack,
    /// An event.
    Event,
    /// What no decoder takes.
    Bad,
}

/// One published message.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// What it was.
    pub kind: Kind,
    /// Whose.
    pub device: u32,
    /// Which of the device's.
    pub n: u32,
    /// Device time, in microseconds; different for each message of a device.
    pub ts: i64,
    /// The broker acknowledged it to the publisher.
    pub acknowledged: bool,
}

/// How a fleet publishes.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// The broker: `127.0.0.1:1883`.
    pub address: String,
    /// First part of the publishers' client ids.
    pub name: String,
    /// The first device's number: fleets that publish at once have none in common.
    pub first: u32,
    /// Devices, divided among the publishers.
    pub devices: u32,
    /// Points of a message.
    pub points: u32,
    /// Connections.
    pub publishers: u32,
    /// Messages a second of all together; `None` for as many as the broker takes.
    pub rate: Option<f64>,
    /// Messages of all together; publishing may be stopped before.
    pub messages: u64,
    /// QoS.
    pub qos: u8,
    /// Acks, events and bad messages among the samples.
    pub mixed: bool,
    /// Messages in flight of each publisher.
    pub window: usize,
}

impl Fleet {
    /// A fleet of samples at a steady rate.
    pub fn steady(address: &str, rate: f64, messages: u64) -> Self {
        Self {
            address: address.to_owned(),
            name: "fleet".to_owned(),
            first: 0,
            devices: 40,
            points: POINTS,
            publishers: 2,
            rate: Some(rate),
            messages,
            qos: 1,
            mixed: false,
            window: 200,
        }
    }

    /// Publishes to the end, or until stopped. Returns every message that left.
    pub async fn run(&self, progress: Arc<Progress>) -> Result<Vec<Entry>> {
        let mut tasks = JoinSet::new();
        for number in 0..self.publishers {
            let (fleet, progress) = (self.clone(), Arc::clone(&progress));
            tasks.spawn(async move { fleet.publish(number, &progress).await });
        }
        let mut ledger = Vec::new();
        while let Some(entries) = tasks.join_next().await {
            ledger.extend(entries??);
        }
        Ok(ledger)
    }

    async fn publish(&self, number: u32, progress: &Progress) -> Result<Vec<Entry>> {
        let publisher = Publisher {
            address: self.address.clone(),
            client_id: format!("{}-{number}", self.name),
            rate: self.rate.map(|rate| rate / f64::from(self.publishers)),
            window: self.window,
            patience: Duration::from_secs(60),
        };
        let own: Vec<u32> = (self.first..self.first + self.devices)
            .filter(|device| device % self.publishers == number)
            .collect();
        let count = self.messages / u64::from(self.publishers);
        let mut entries: Vec<Entry> = Vec::new();
        let mut clock = 0i64;
        let acknowledged = publisher
            .run(progress, |index| {
                if index as u64 >= count {
                    return None;
                }
                let (device, n) = (own[index % own.len()], (index / own.len()) as u32);
                clock = now().max(clock + 1);
                let kind = if self.mixed { kind_of(n, device) } else { Kind::Telemetry };
                let entry = Entry { kind, device, n, ts: clock, acknowledged: false };
                entries.push(entry);
                Some(Outgoing {
                    topic: topic(&entry),
                    payload: payload(&entry, self.points).into(),
                    qos: self.qos,
                })
            })
            .await?;
        for (entry, acknowledged) in entries.iter_mut().zip(acknowledged) {
            entry.acknowledged = acknowledged;
        }
        Ok(entries)
    }
}

/// Of a mixed fleet, one message in 20 is an answer, one an event, and one in 100 is bad.
fn kind_of(n: u32, device: u32) -> Kind {
    match (n + device) % 100 {
        7 => Kind::Bad,
        x if x % 20 == 3 => Kind::Ack,
        x if x % 20 == 11 => Kind::Event,
        _ => Kind::Telemetry,
    }
}

/// Now, in microseconds.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_micros() as i64)
}

/// A device time for a payload: a minute before this process began, and so many milliseconds later.
pub fn at(millis: u32) -> String {
    static BASE: LazyLock<i64> = LazyLock::new(|| now() - 60_000_000);
    rfc3339(*BASE + i64::from(millis) * 1000)
}

fn rfc3339(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros).map_or_else(|_| String::new(), |ts| ts.to_string())
}

/// A device's name.
pub fn device_name(device: u32) -> String {
    format!("dev-{device:05}")
}

/// The message's topic.
pub fn topic(entry: &Entry) -> String {
    let kind = match entry.kind {
        Kind::Telemetry | Kind::Bad => "telem",
        Kind::Ack => "ack",
        Kind::Event => "event",
    };
    format!("traksense/t{}/s1/{}/{kind}", entry.device % TENANTS, device_name(entry.device))
}

/// The value of a point.
pub fn value(entry: &Entry, point: u32) -> f64 {
    f64::from(entry.device) * 1000.0 + f64::from(entry.n) + f64::from(point) / 64.0
}

/// The message's payload.
pub fn payload(entry: &Entry, points: u32) -> String {
    use std::fmt::Write;
    let ts = rfc3339(entry.ts);
    let Entry { device, n, .. } = entry;
    match entry.kind {
        Kind::Telemetry => {
            let mut text = format!(r#"{{"schema":"v1","ts":"{ts}","points":["#);
            for point in 0..points {
                let comma = if point == 0 { "" } else { "," };
                let _ = write!(
                    text,
                    r#"{comma}{{"name":"p{point}","t":"float","v":{},"u":"celsius"}}"#,
                    value(entry, point)
                );
            }
            text + "]}"
        }
        Kind::Ack => format!(r#"{{"schema":"v1","cmd_id":"c-{device}-{n}","ok":true,"ts_exec":"{ts}"}}"#),
        Kind::Event => format!(
            r#"{{"schema":"v1","event_id":"e-{device}-{n}","event_type":"door","ts":"{ts}","data":{{"n":{n}}}}}"#
        ),
        Kind::Bad => format!(r#"{{"schema":"v1","ts":"yesterday","device":{device},"n":{n}}}"#),
    }
}
