//! One connection to the broker, of either protocol version.
//!
//! The packets are rumqttc's; its event loop is not used. That loop sends each acknowledgement with a
//! system call of its own, which is most of what a small message costs, and it would carry queued
//! acknowledgements and received messages of a dead connection over to the next one. Here all that
//! waits leaves at once, and a connection ends with everything that belongs to it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rumqttc::tokio_rustls::TlsConnector;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::client::Client;
use super::nap;
use super::options::Options;
use super::tls;
use super::wire::{self, Packet};
use crate::decode::Compression;

/// How long TCP, TLS and CONNACK may take together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Bytes read at once, if the broker has as many.
const READ: usize = 64 * 1024;
/// How long reading rests where nobody waits for what comes: see [`Connection::rest`].
const REST: Duration = Duration::from_millis(1);

/// What came from the broker, or left for it.
#[derive(Debug)]
pub enum Event {
    /// CONNACK.
    Connected(Granted),
    /// SUBACK: for each filter, in the order of SUBSCRIBE, the granted QoS or the refusal.
    Subscribed(Vec<Result<u8, String>>),
    /// UNSUBACK of the filter.
    Unsubscribed(String),
    /// PUBLISH.
    Publish(Publish),
    /// PUBACK of a message of ours.
    Published,
    /// PINGRESP, so long after PINGREQ.
    Pong(Duration),
    /// Our DISCONNECT left.
    Disconnected,
    /// Anything else: the connection lives.
    Alive,
}

/// A received PUBLISH.
#[derive(Debug)]
pub struct Publish {
    /// 0 at QoS 0.
    pub packet_id: u16,
    /// Topic.
    pub topic: Bytes,
    /// Payload.
    pub payload: Bytes,
    /// How it is compressed, where its content type says so (MQTT 5).
    pub compression: Option<Compression>,
    /// Bytes of memory that it keeps: topic and payload are parts of its whole packet.
    pub held: usize,
    /// The broker may have sent it before.
    pub dup: bool,
    /// User properties (MQTT 5).
    pub user_properties: Vec<(String, String)>,
}

/// What the broker granted at connect.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    /// The broker had our session.
    pub session_present: bool,
    /// Session expiry, where the broker set its own (MQTT 5).
    pub session_expiry: Option<Duration>,
    /// Keep-alive, where the broker set its own (MQTT 5).
    pub keep_alive: Option<Duration>,
    /// Largest packet the broker accepts, where it says (MQTT 5).
    pub max_packet: Option<u32>,
    /// Largest QoS the broker supports (MQTT 5).
    pub max_qos: u8,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Another connection uses the client id (MQTT 5 reason 0x8E).
    #[error("another connection uses this client id")]
    TakenOver,
    /// The broker refused the client id.
    #[error("the broker refused the client id")]
    ClientIdRefused,
    /// The broker refused the user name, the password or the client.
    #[error("the broker refused the login: {0}")]
    LoginRefused(String),
    /// The broker refused the connection for another reason.
    #[error("the broker refused the connection: {0}")]
    Refused(String),
    /// One side does not trust the other's certificate.
    #[error("TLS: {0}")]
    Untrusted(String),
    /// A packet is larger than we accept.
    #[error("a packet is larger than this client accepts: {0}")]
    PacketTooLarge(String),
    /// The network, TLS or the protocol failed.
    #[error("the connection failed: {0}")]
    Failed(String),
    /// Nothing came from the broker for twice the keep-alive.
    #[error("the broker has not answered for {0:?}")]
    Silent(Duration),
    /// The byte budget stayed full for half the keep-alive.
    #[error("the deliveries in hand stayed at their byte budget for {0:?}")]
    BudgetFull(Duration),
}

impl Lost {
    /// A bounded word for why.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::TakenOver => "client_id_in_use",
            Self::ClientIdRefused => "client_id_refused",
            Self::LoginRefused(_) => "login_refused",
            Self::Refused(_) => "connection_refused",
            Self::Untrusted(_) => "tls_refused",
            Self::PacketTooLarge(_) => "packet_too_large",
            Self::Failed(_) => "connection_failed",
            Self::Silent(_) => "broker_silent",
            Self::BudgetFull(_) => "budget_full",
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection to the broker.
pub struct Connection {
    options: Options,
    client: Client,
    stream: Option<Box<dyn Stream>>,
    input: BytesMut,
    output: BytesMut,
    closing: bool,
    keep_alive: Duration,
    ping_at: Instant,
    heard_at: Instant,
    pinged_at: Instant,
    /// Before then nothing is read.
    rest_until: Option<Instant>,
    /// UNSUBSCRIBEs not yet answered: their packet ids and filters.
    unsubscribing: VecDeque<(u16, String)>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.client.outbox.close();
    }
}

impl Connection {
    /// A connection that the first [`Connection::next`] opens.
    pub fn new(options: &Options) -> Self {
        let now = Instant::now();
        Self {
            client: Client::new(options.protocol),
            stream: None,
            input: BytesMut::with_capacity(READ),
            output: BytesMut::new(),
            closing: false,
            keep_alive: options.keep_alive,
            ping_at: now,
            heard_at: now,
            pinged_at: now,
            rest_until: None,
            unsubscribing: VecDeque::new(),
            options: options.clone(),
        }
    }

    /// Sends on this connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The keep-alive that holds: the broker's own, where it set one (MQTT-3.1.2-21).
    pub const fn keep_alive(&self) -> Duration {
        self.keep_alive
    }

    /// UNSUBSCRIBE; answered by [`Event::Unsubscribed`].
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        let unsubscribing = &mut self.unsubscribing;
        self.client.outbox.add(|waiting| {
            let packet_id = waiting.next_packet_id();
            unsubscribing.push_back((packet_id, filter.to_owned()));
            wire::unsubscribe(self.options.protocol, packet_id, filter, &mut waiting.bytes)
        })
    }

    /// Nobody waits for what comes next: what is read already still does, then reading rests for a moment, and
    /// its thread too. A broker sends packet by packet, and each would wake them.
    pub fn rest(&mut self) {
        // Once for each rest: the thread may wait for something else before the rest is over.
        if self.rest_until.is_none() {
            self.rest_until = Some(Instant::now() + REST);
            nap::ask();
        }
    }

    /// The next event. After an error the connection is over and must be dropped. Cancelling is safe
    /// once connected.
    pub async fn next(&mut self) -> Result<Event, Lost> {
        if self.stream.is_none() {
            let opened = tokio::time::timeout(CONNECT_DEADLINE, self.open()).await;
            return opened
                .unwrap_or_else(|_| Err(Lost::Failed(format!("no CONNACK within {CONNECT_DEADLINE:?}"))));
        }
        loop {
            if let Some(packet) = self.read()? {
                return Ok(self.event(packet));
            }
            self.collect();
            let Self { stream: Some(stream), input, output, client, rest_until, .. } = self else {
                return Err(Lost::Failed("not connected".to_owned()));
            };
            if self.closing {
                stream.write_all_buf(output).await.map_err(failed)?;
                let _ = stream.shutdown().await;
                return Ok(Event::Disconnected);
            }
            // What is to leave ends the rest: the outbox tells.
            let rest = rest_until.take();
            tokio::select! {
                read = exchange(rest, stream, input, output) => {
                    if read.map_err(failed)? == 0 {
                        return Err(Lost::Failed("the broker closed the connection".to_owned()));
                    }
                    self.heard_at = Instant::now();
                }
                () = client.outbox.filled.notified() => {}
                () = tokio::time::sleep_until(self.ping_at) => {
                    let silence = self.keep_alive * 2;
                    if self.heard_at.elapsed() >= silence {
                        return Err(Lost::Silent(silence));
                    }
                    wire::ping(output);
                    self.pinged_at = Instant::now();
                    self.ping_at = self.pinged_at + self.keep_alive;
                }
            }
        }
    }

    async fn open(&mut self) -> Result<Event, Lost> {
        let Options { host, port, tls, max_packet, protocol, .. } = &self.options;
        let tcp = TcpStream::connect(format!("{host}:{port}")).await.map_err(failed)?;
        // Acknowledgements are small packets that must not wait for one another.
        tcp.set_nodelay(true).map_err(failed)?;
        let mut stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(config) => {
                let name = host.trim_matches(['[', ']']).to_owned();
                let name = rustls::pki_types::ServerName::try_from(name)
                    .map_err(|error| Lost::Failed(error.to_string()))?;
                let connector = TlsConnector::from(Arc::clone(config));
                Box::new(connector.connect(name, tcp).await.map_err(failed)?)
            }
        };
        wire::connect(&self.options, &mut self.output)?;
        stream.write_all_buf(&mut self.output).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        loop {
            match wire::read(*protocol, &mut self.input, *max_packet)? {
                Some(Packet::ConnAck(granted)) => {
                    self.keep_alive = granted
                        .keep_alive
                        .filter(|keep_alive| !keep_alive.is_zero())
                        .unwrap_or(self.options.keep_alive);
                    self.heard_at = Instant::now();
                    self.ping_at = self.heard_at + self.keep_alive;
                    self.stream = Some(stream);
                    return Ok(Event::Connected(granted));
                }
                Some(other) => return Err(Lost::Failed(format!("{other:?} instead of CONNACK"))),
                None => {
                    if stream.read_buf(&mut self.input).await.map_err(failed)? == 0 {
                        return Err(Lost::Failed("the broker closed the connection".to_owned()));
                    }
                }
            }
        }
    }

    fn read(&mut self) -> Result<Option<Packet>, Lost> {
        wire::read(self.options.protocol, &mut self.input, self.options.max_packet)
    }

    /// Takes what waits in the outbox.
    fn collect(&mut self) {
        let mut waiting = self.client.outbox.waiting();
        if self.output.is_empty() {
            std::mem::swap(&mut self.output, &mut waiting.bytes);
        } else {
            self.output.extend_from_slice(&waiting.bytes);
        }
        waiting.bytes.clear();
        self.closing |= waiting.closing;
    }

    fn event(&mut self, packet: Packet) -> Event {
        match packet {
            Packet::Publish(publish) => Event::Publish(publish),
            Packet::ConnAck(granted) => Event::Connected(granted),
            Packet::SubAck(grants) => Event::Subscribed(grants),
            Packet::PubAck => Event::Published,
            Packet::Pong => Event::Pong(self.pinged_at.elapsed()),
            Packet::UnsubAck(packet_id) => {
                let index = self.unsubscribing.iter().position(|(id, _)| *id == packet_id);
                let answered = index.and_then(|index| self.unsubscribing.remove(index));
                answered.map_or(Event::Alive, |(_, filter)| Event::Unsubscribed(filter))
            }
            Packet::Other => Event::Alive,
        }
    }
}

/// After the rest, writes what is to leave while it waits for something to read: a broker may stop reading until
/// it is read from. Returns how many bytes were read; 0 at the end. Cancelling loses nothing.
async fn exchange(
    rest: Option<Instant>,
    stream: &mut Box<dyn Stream>,
    input: &mut BytesMut,
    output: &mut BytesMut,
) -> io::Result<usize> {
    if let Some(until) = rest {
        tokio::time::sleep_until(until).await;
    }
    if input.capacity() - input.len() < READ / 4 {
        input.reserve(READ);
    }
    poll_fn(|context| {
        while !output.is_empty() {
            match Pin::new(&mut **stream).poll_write(context, output) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => output.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if let Poll::Ready(Err(error)) = Pin::new(&mut **stream).poll_flush(context) {
            return Poll::Ready(Err(error));
        }
        pin!(stream.read_buf(input)).poll(context)
    })
    .await
}

#[allow(clippy::needless_pass_by_value)]
fn failed(error: io::Error) -> Lost {
    tls::refusal(&error).map_or_else(|| Lost::Failed(error.to_string()), Lost::Untrusted)
}

#[cfg(test)]
mod tests;
