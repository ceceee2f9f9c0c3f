//! A publisher that knows what the broker acknowledged: QoS 1 over a socket of its own, resending
//! after each reconnect what is not acknowledged. rumqttc's client drops what it holds when the
//! broker lost its session, so only its codec is used.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4::{Connect, Disconnect, Packet, Publish, Subscribe};
use rumqttc::mqttbytes::{Error as CodecError, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::listener::next;

const MAX_PACKET: usize = 300_000_000;
/// How long CONNACK and SUBACK may take.
const ANSWER: Duration = Duration::from_secs(5);

/// A message to publish.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Bytes,
    /// 0 or 1.
    pub qos: u8,
}

/// Counts over all publishers of a run.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages sent at least once.
    pub sent: AtomicU64,
    /// Messages acknowledged by the broker.
    pub acknowledged: AtomicU64,
    /// Set to end the run.
    pub stop: AtomicBool,
}

/// One publisher's connection and pace.
#[derive(Debug, Clone)]
pub struct Publisher {
    /// The broker.
    pub address: String,
    /// Its client id.
    pub client_id: String,
    /// Messages a second; `None` for as many as the broker takes.
    pub rate: Option<f64>,
    /// Messages in flight.
    pub window: usize,
    /// How long the broker may take for the last acknowledgement.
    pub patience: Duration,
}

struct InFlight {
    index: usize,
    packet_id: u16,
    message: Outgoing,
}

impl Publisher {
    /// Publishes what `next` gives until it gives nothing more or the run is stopped. Returns which
    /// messages the broker acknowledged.
    pub async fn run(
        &self,
        progress: &Progress,
        mut next: impl FnMut(usize) -> Option<Outgoing>,
    ) -> Result<Vec<bool>> {
        let mut acknowledged: Vec<bool> = Vec::new();
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        let mut packet_id = 0u16;
        let mut done = false;
        let start = Instant::now();
        let mut last_progress = Instant::now();
        'connections: loop {
            if last_progress.elapsed() > self.patience {
                bail!("{}: the broker took no message for {:?}", self.client_id, self.patience);
            }
            let Ok((mut stream, _)) = connect(&self.address, &self.client_id, false).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (mut output, mut input) =
                (BytesMut::with_capacity(64 * 1024), BytesMut::with_capacity(64 * 1024));
            for waiting in &in_flight {
                encode(waiting, true, &mut output)?;
            }
            loop {
                while !done && in_flight.len() < self.window && output.len() < 64 * 1024 {
                    let index = acknowledged.len();
                    let due =
                        self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(index as f64 / rate));
                    if due > start.elapsed() {
                        break;
                    }
                    let message = if progress.stop.load(Ordering::Relaxed) { None } else { next(index) };
                    let Some(message) = message else {
                        done = true;
                        break;
                    };
                    acknowledged.push(false);
                    progress.sent.fetch_add(1, Ordering::Relaxed);
                    packet_id = if packet_id == u16::MAX { 1 } else { packet_id + 1 };
                    let waiting = InFlight { index, packet_id, message };
                    encode(&waiting, false, &mut output)?;
                    if waiting.message.qos > 0 {
                        in_flight.push_back(waiting);
                    }
                }
                if !output.is_empty() && stream.write_all_buf(&mut output).await.is_err() {
                    continue 'connections;
                }
                if done && in_flight.is_empty() {
                    Disconnect.write(&mut output)?;
                    let _ = stream.write_all_buf(&mut output).await;
                    return Ok(acknowledged);
                }
                let pause = self.next_due(start, acknowledged.len(), done, in_flight.len());
                tokio::select! {
                    read = stream.read_buf(&mut input) => {
                        if !matches!(read, Ok(1..)) {
                            continue 'connections;
                        }
                        let before = in_flight.len();
                        take_acknowledgements(&mut input, &mut in_flight, &mut acknowledged)?;
                        progress.acknowledged.fetch_add((before - in_flight.len()) as u64, Ordering::Relaxed);
                        last_progress = Instant::now();
                    }
                    () = tokio::time::sleep(pause) => {
                        if !in_flight.is_empty() && last_progress.elapsed() > self.patience {
                            bail!("{}: the broker acknowledged nothing for {:?}", self.client_id, self.patience);
                        }
                        if in_flight.is_empty() {
                            last_progress = Instant::now();
                        }
                    }
                }
            }
        }
    }

    fn next_due(&self, start: Instant, index: usize, done: bool, waiting: usize) -> Duration {
        if done || waiting >= self.window {
            return Duration::from_millis(500);
        }
        let due = self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(index as f64 / rate));
        due.saturating_sub(start.elapsed())
    }
}

/// Connects with a session that the broker keeps, or ends; says whether it had one.
async fn connect(address: &str, client_id: &str, clean_session: bool) -> Result<(TcpStream, bool)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut connect = Connect::new(client_id);
    connect.clean_session = clean_session;
    connect.keep_alive = 0;
    let mut buffer = BytesMut::new();
    connect.write(&mut buffer)?;
    stream.write_all_buf(&mut buffer).await?;
    let mut input = BytesMut::new();
    match tokio::time::timeout(ANSWER, next(&mut stream, &mut input)).await?? {
        Packet::ConnAck(ack) => Ok((stream, ack.session_present)),
        other => bail!("no CONNACK but {other:?}"),
    }
}

/// Whether the broker has a session for the client id. One that it has not is not made.
pub async fn has_session(address: &str, client_id: &str) -> Result<bool> {
    let (_, present) = connect(address, client_id, false).await?;
    if !present {
        connect(address, client_id, true).await?;
    }
    Ok(present)
}

/// Subscribes in the session of the client id, and leaves it to the broker.
pub async fn subscribe(address: &str, client_id: &str, filter: &str) -> Result<()> {
    let (mut stream, _) = connect(address, client_id, false).await?;
    let mut buffer = BytesMut::new();
    let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
    subscribe.pkid = 1;
    subscribe.write(&mut buffer)?;
    stream.write_all_buf(&mut buffer).await?;
    tokio::time::timeout(ANSWER, async {
        while !matches!(next(&mut stream, &mut buffer).await?, Packet::SubAck(_)) {}
        Ok(())
    })
    .await?
}

fn encode(waiting: &InFlight, dup: bool, output: &mut BytesMut) -> Result<()> {
    let qos = if waiting.message.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let mut publish =
        Publish::from_bytes(waiting.message.topic.as_str(), qos, waiting.message.payload.clone());
    publish.pkid = waiting.packet_id;
    publish.dup = dup;
    publish.write(output)?;
    Ok(())
}

fn take_acknowledgements(
    input: &mut BytesMut,
    in_flight: &mut VecDeque<InFlight>,
    acknowledged: &mut [bool],
) -> Result<()> {
    loop {
        match Packet::read(input, MAX_PACKET) {
            Ok(Packet::PubAck(ack)) => {
                let place = in_flight.iter().position(|waiting| waiting.packet_id == ack.pkid);
                if let Some(waiting) = place.and_then(|place| in_flight.remove(place)) {
                    *acknowledged.get_mut(waiting.index).context("an index that was given")? = true;
                }
            }
            Ok(_) => {}
            Err(CodecError::InsufficientBytes(_)) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Publishes single messages and waits for their acknowledgements.
pub async fn publish_all(address: &str, messages: Vec<Outgoing>) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let publisher = Publisher {
        address: address.to_owned(),
        client_id: format!("single-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
        rate: None,
        window: 100,
        patience: Duration::from_secs(30),
    };
    let acknowledged = publisher.run(&Progress::default(), |index| messages.get(index).cloned()).await?;
    let lost = messages
        .iter()
        .zip(&acknowledged)
        .filter(|(message, acknowledged)| message.qos > 0 && !**acknowledged);
    anyhow::ensure!(lost.count() == 0, "the broker did not acknowledge every message");
    Ok(())
}
