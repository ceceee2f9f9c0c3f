//! Publishers that cost little: packets are made once, and only packet id and time change. Device
//! times are the times of sending, different for each message of a device.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::BytesMut;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, Disconnect, Publish};

use crate::fleet::{TENANTS, device_name, now};

/// Messages in flight of one publisher.
const WINDOW: u64 = 2000;
/// Messages of one write.
const BURST: u64 = 100;
/// How long a publisher sleeps or waits for answers at most.
const NAP: Duration = Duration::from_millis(1);
/// How long the broker may take for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
const TIME_LENGTH: usize = "2026-11-24T05:10:53.123456Z".len();

/// What is published.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The broker.
    pub address: String,
    /// Devices, divided among the publishers.
    pub devices: u32,
    /// Points of a message.
    pub points: u32,
    /// Connections.
    pub publishers: u32,
    /// Messages a second of all together; `None` for as many as are taken.
    pub rate: Option<f64>,
    /// Messages published and not yet taken by the consumer, at most: the broker's queue always has
    /// something, and does not grow without end.
    pub backlog: u64,
    /// Of ten messages, so many are sent again: what a device sent before, with the same time.
    pub repeats: u64,
}

/// Counts over all publishers.
#[derive(Debug, Default)]
pub struct Counts {
    /// Messages sent, or about to be.
    pub sent: AtomicU64,
    /// Messages acknowledged by the broker.
    pub acknowledged: AtomicU64,
    /// Messages that are due and wait until the broker has acknowledged earlier ones; 0 without a rate.
    waiting: AtomicU64,
    /// Of the messages sent, those that were sent before.
    pub repeated: AtomicU64,
    /// Messages taken by the consumer; whoever measures it tells.
    pub taken: AtomicU64,
    stop: AtomicBool,
    /// Where the kernel tells the processor time of each thread.
    threads: Mutex<Vec<String>>,
}

/// Publishers at work.
#[derive(Debug)]
pub struct Source {
    /// How far they are.
    pub counts: Arc<Counts>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Source {
    /// Starts publishing.
    pub fn start(plan: &Plan) -> Self {
        let counts = Arc::new(Counts::default());
        let threads = (0..plan.publishers)
            .map(|number| {
                let (plan, counts) = (plan.clone(), Arc::clone(&counts));
                std::thread::spawn(move || publish(&plan, number, &counts))
            })
            .collect();
        Self { counts, threads }
    }

    /// Publishes as many as the plan's backlog while nobody takes any; returns how many.
    pub async fn fill(plan: &Plan) -> Result<u64> {
        let source = Self::start(plan);
        let acknowledged = || source.counts.acknowledged.load(Ordering::Relaxed);
        crate::wait::until_async("the broker has queued all", PATIENCE, || async {
            acknowledged() >= plan.backlog
        })
        .await?;
        source.finish()
    }

    /// Ends publishing; how many messages the broker acknowledged: all that were sent.
    pub fn finish(self) -> Result<u64> {
        self.counts.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a publisher panicked"))??;
        }
        Ok(self.counts.acknowledged.load(Ordering::Relaxed))
    }
}

impl Counts {
    /// Counts so many messages as sent, or as many as the backlog has room for. In one step: publishers
    /// that looked first and counted then would publish a burst too many.
    fn reserve(&self, wanted: u64, backlog: u64) -> u64 {
        let taken = self.taken.load(Ordering::Relaxed);
        let room = |sent: u64| wanted.min(backlog.saturating_sub(sent.saturating_sub(taken)));
        let reserved =
            self.sent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sent| Some(sent + room(sent)));
        reserved.map_or(0, room)
    }

    /// Messages sent, or due and held back by the broker.
    pub fn offered(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) + self.waiting.load(Ordering::Relaxed)
    }

    /// Adds the calling thread to those whose processor time is counted.
    pub fn count_this_thread(&self) -> Result<()> {
        let thread = std::fs::read_link("/proc/thread-self")?;
        let file = format!("/proc/{}/stat", thread.display());
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(file);
        Ok(())
    }

    /// Seconds of processor time of all threads that were counted.
    pub fn cpu_seconds(&self) -> f64 {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.iter().map(|file| crate::worker::cpu_seconds_in(file)).sum()
    }
}

/// A PUBLISH that is sent again and again.
struct Template {
    packet: Vec<u8>,
    packet_id: usize,
    time: usize,
}

impl Template {
    fn new(device: u32, points: u32) -> Result<Self> {
        let time = "0".repeat(TIME_LENGTH);
        let points: Vec<String> = (0..points)
            .map(|point| {
                let value = f64::from(device % 100) + f64::from(point) / 8.0;
                format!(r#"{{"name":"p{point}","t":"float","v":{value},"u":"celsius"}}"#)
            })
            .collect();
        let payload = format!(r#"{{"schema":"v1","ts":"{time}","points":[{}]}}"#, points.join(","));
        let topic = format!("traksense/t{}/s1/{}/telem", device % TENANTS, device_name(device));
        let mut publish = Publish::new(topic.as_str(), QoS::AtLeastOnce, payload);
        publish.pkid = 1;
        let mut packet = BytesMut::new();
        publish.write(&mut packet)?;
        let find = |what: &str| {
            let found = packet.windows(what.len()).position(|window| window == what.as_bytes());
            found.with_context(|| format!("{what} in the packet"))
        };
        Ok(Self { packet_id: find(&topic)? + topic.len(), time: find(&time)?, packet: packet.to_vec() })
    }

    /// With a new time, or that of the last time.
    fn write(&mut self, packet_id: u16, time: Option<&[u8; TIME_LENGTH]>, output: &mut Vec<u8>) {
        self.packet[self.packet_id..self.packet_id + 2].copy_from_slice(&packet_id.to_be_bytes());
        if let Some(time) = time {
            self.packet[self.time..self.time + TIME_LENGTH].copy_from_slice(time);
        }
        output.extend_from_slice(&self.packet);
    }
}

/// RFC 3339 with microseconds; the second's part is made once a second.
struct Clock {
    second: i64,
    text: [u8; TIME_LENGTH],
}

impl Clock {
    fn text(&mut self, micros: i64) -> Result<&[u8; TIME_LENGTH]> {
        let (second, mut rest) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        if second != self.second {
            self.second = second;
            let text = jiff::Timestamp::from_second(second)?.to_string().replace('Z', ".000000Z");
            self.text = text.as_bytes().try_into().context("a time of the usual length")?;
        }
        for digit in self.text[TIME_LENGTH - 7..TIME_LENGTH - 1].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        Ok(&self.text)
    }
}

fn publish(plan: &Plan, number: u32, counts: &Counts) -> Result<()> {
    counts.count_this_thread()?;
    let own = (0..plan.devices).filter(|device| device % plan.publishers == number);
    let mut templates: Vec<Template> =
        own.map(|device| Template::new(device, plan.points)).collect::<Result<_>>()?;
    let mut stream = connect(&plan.address, &format!("source-{number}"))?;
    stream.set_read_timeout(Some(NAP))?;
    let rate = plan.rate.map(|rate| rate / f64::from(plan.publishers));
    let mut clock = Clock { second: i64::MIN, text: [0; TIME_LENGTH] };
    let (mut output, mut input) = (Vec::with_capacity(128 * 1024), vec![0; 64 * 1024]);
    let (mut sent, mut acknowledged, mut partial, mut last_ts) = (0u64, 0u64, 0usize, 0i64);
    let mut waiting = 0;
    let start = Instant::now();
    let mut last_answer = Instant::now();
    loop {
        let due = rate.map_or(u64::MAX, |rate| (start.elapsed().as_secs_f64() * rate) as u64 - sent);
        let stopped = counts.stop.load(Ordering::Relaxed);
        let wanted = if stopped { 0 } else { (WINDOW - (sent - acknowledged)).min(due).min(BURST) };
        let burst = counts.reserve(wanted, plan.backlog);
        // What this publisher is itself too slow for was not offered.
        let is_held_back = rate.is_some() && !stopped && sent + burst - acknowledged == WINDOW;
        let held_back = if is_held_back { due - burst } else { 0 };
        counts.waiting.fetch_add(held_back.wrapping_sub(waiting), Ordering::Relaxed);
        waiting = held_back;
        output.clear();
        for _ in 0..burst {
            let which = sent as usize % templates.len();
            let packet_id = (sent % u64::from(u16::MAX)) as u16 + 1;
            let first_round = sent < templates.len() as u64;
            if !first_round && (sent / 7) % 10 < plan.repeats {
                counts.repeated.fetch_add(1, Ordering::Relaxed);
                templates[which].write(packet_id, None, &mut output);
            } else {
                last_ts = now().max(last_ts + 1);
                templates[which].write(packet_id, Some(clock.text(last_ts)?), &mut output);
            }
            sent += 1;
        }
        stream.write_all(&output)?;
        if sent == acknowledged {
            if stopped {
                let mut goodbye = BytesMut::new();
                Disconnect.write(&mut goodbye)?;
                return Ok(stream.write_all(&goodbye)?);
            }
            last_answer = Instant::now();
            std::thread::sleep(NAP);
        } else if burst == 0 || sent - acknowledged > WINDOW / 2 {
            match stream.read(&mut input) {
                Ok(0) => bail!("the broker closed a publisher's connection"),
                Ok(length) => {
                    // Only PUBACKs come, 4 bytes each, in order.
                    let answers = (partial + length) / 4;
                    ensure!(partial != 0 || input[0] == 0x40, "the broker sent no PUBACK");
                    partial = (partial + length) % 4;
                    acknowledged += answers as u64;
                    counts.acknowledged.fetch_add(answers as u64, Ordering::Relaxed);
                    last_answer = Instant::now();
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    ensure!(last_answer.elapsed() < PATIENCE, "the broker acknowledges nothing");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A connection of MQTT 3.1.1 without a session.
pub fn connect(address: &str, client_id: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut connect = Connect::new(client_id);
    connect.clean_session = true;
    connect.keep_alive = 0;
    let mut packet = BytesMut::new();
    connect.write(&mut packet)?;
    stream.write_all(&packet)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(answer == [0x20, 2, 0, 0], "the broker refused a connection: {answer:?}");
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_holds_the_packet_id_and_the_time() {
        let mut template = Template::new(7, 2).unwrap();
        let mut clock = Clock { second: i64::MIN, text: [0; TIME_LENGTH] };
        let mut output = Vec::new();
        template.write(258, Some(clock.text(1_000_000_000_000_042).unwrap()), &mut output);
        let packet = rumqttc::mqttbytes::v4::Packet::read(&mut BytesMut::from(&output[..]), 10_000).unwrap();
        let rumqttc::mqttbytes::v4::Packet::Publish(publish) = packet else { panic!("no PUBLISH") };
        assert_eq!((publish.pkid, publish.topic.as_str()), (258, "traksense/t1/s1/dev-00007/telem"));
        let payload: serde_json::Value = serde_json::from_slice(&publish.payload).unwrap();
        assert_eq!(payload["ts"], "2001-09-09T01:46:40.000042Z");
        assert_eq!(payload["points"][1]["v"], 7.125);
    }
}
