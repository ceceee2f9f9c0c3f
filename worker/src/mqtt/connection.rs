//! One connection to the broker, of either protocol version.
//!
//! Each connection has a rumqttc event loop of its own, which is dropped when the connection ends.
//! rumqttc 0.25.1 would carry queued acknowledgements and received messages of a dead connection
//! over to the next one, keep options that a broker has overridden, and reconnect without a pause;
//! with a fresh event loop none of that can happen.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::v5 as p5;
use rumqttc::{mqttbytes::v4 as p4, v5};

use super::options::{Options, Protocol, network};

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
    /// The broker may have sent it before.
    pub dup: bool,
}

/// What the broker granted at connect.
#[derive(Debug, Clone, Default)]
pub struct Granted {
    /// The broker had our session.
    pub session_present: bool,
    /// Session expiry, where the broker set its own (MQTT 5).
    pub session_expiry: Option<Duration>,
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
            Self::PacketTooLarge(_) => "packet_too_large",
            Self::Failed(_) => "connection_failed",
            Self::Silent(_) => "broker_silent",
            Self::BudgetFull(_) => "budget_full",
        }
    }
}

/// Sends to the broker; cheap to clone, never waits.
#[derive(Debug, Clone)]
pub enum Client {
    /// MQTT 5.
    V5(v5::AsyncClient),
    /// MQTT 3.1.1.
    V311(rumqttc::AsyncClient),
}

impl Client {
    /// PUBACK. False when the connection is over.
    pub fn ack(&self, packet_id: u16) -> bool {
        match self {
            Self::V5(client) => {
                let publish = p5::Publish {
                    pkid: packet_id,
                    qos: v5::mqttbytes::QoS::AtLeastOnce,
                    ..Default::default()
                };
                client.try_ack(&publish).is_ok()
            }
            Self::V311(client) => {
                let mut publish = p4::Publish::from_bytes("", rumqttc::QoS::AtLeastOnce, Bytes::new());
                publish.pkid = packet_id;
                client.try_ack(&publish).is_ok()
            }
        }
    }

    /// SUBSCRIBE at QoS 1, all filters in one packet. Retained messages come with a new subscription only.
    pub fn subscribe(&self, filters: &[String]) -> bool {
        match self {
            Self::V5(client) => {
                let filters = filters.iter().map(|filter| {
                    let mut filter = p5::Filter::new(filter, v5::mqttbytes::QoS::AtLeastOnce);
                    if !filter.path.starts_with("$share/") {
                        filter.retain_forward_rule = p5::RetainForwardRule::OnNewSubscribe;
                    }
                    filter
                });
                client.try_subscribe_many(filters).is_ok()
            }
            Self::V311(client) => {
                let filters = filters
                    .iter()
                    .map(|filter| p4::SubscribeFilter::new(filter.clone(), rumqttc::QoS::AtLeastOnce));
                client.try_subscribe_many(filters).is_ok()
            }
        }
    }

    /// PUBLISH at QoS 1.
    pub fn publish(&self, topic: &str, payload: &str) -> bool {
        match self {
            Self::V5(client) => {
                client.try_publish(topic, v5::mqttbytes::QoS::AtLeastOnce, false, payload.to_owned()).is_ok()
            }
            Self::V311(client) => {
                client.try_publish(topic, rumqttc::QoS::AtLeastOnce, false, payload).is_ok()
            }
        }
    }

    fn unsubscribe(&self, filter: &str) -> bool {
        match self {
            Self::V5(client) => client.try_unsubscribe(filter).is_ok(),
            Self::V311(client) => client.try_unsubscribe(filter).is_ok(),
        }
    }

    /// DISCONNECT, after all that was sent before. It keeps the session.
    pub fn disconnect(&self) -> bool {
        match self {
            Self::V5(client) => client.try_disconnect().is_ok(),
            Self::V311(client) => client.try_disconnect().is_ok(),
        }
    }
}

/// One connection to the broker.
pub struct Connection {
    client: Client,
    event_loop: EventLoop,
    /// UNSUBSCRIBEs not yet answered: the filter, and its packet id once it left.
    unsubscribing: VecDeque<(String, Option<u16>)>,
}

enum EventLoop {
    V5(Box<v5::EventLoop>),
    V311(Box<rumqttc::EventLoop>),
}

impl Connection {
    /// A connection that the first [`Connection::next`] opens.
    pub fn new(options: &Options) -> Self {
        let capacity = options.channel_capacity();
        let (client, event_loop) = match options.protocol {
            Protocol::V5 => {
                let (client, event_loop) = v5::AsyncClient::new(options.v5(), capacity);
                (Client::V5(client), EventLoop::V5(Box::new(event_loop)))
            }
            Protocol::V311 => {
                let (client, mut event_loop) = rumqttc::AsyncClient::new(options.v311(), capacity);
                event_loop.set_network_options(network());
                (Client::V311(client), EventLoop::V311(Box::new(event_loop)))
            }
        };
        Self { client, event_loop, unsubscribing: VecDeque::new() }
    }

    /// Sends on this connection.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// UNSUBSCRIBE; answered by [`Event::Unsubscribed`].
    pub fn unsubscribe(&mut self, filter: &str) -> bool {
        let sent = self.client.unsubscribe(filter);
        if sent {
            self.unsubscribing.push_back((filter.to_owned(), None));
        }
        sent
    }

    /// The next event. After an error the connection is over and must be dropped. Cancelling is safe
    /// once connected.
    pub async fn next(&mut self) -> Result<Event, Lost> {
        match &mut self.event_loop {
            EventLoop::V5(event_loop) => match event_loop.poll().await {
                Ok(event) => Ok(self.on_v5(event)),
                Err(error) => Err(lost_v5(error)),
            },
            EventLoop::V311(event_loop) => match event_loop.poll().await {
                Ok(event) => Ok(self.on_v311(event)),
                Err(error) => Err(lost_v311(error)),
            },
        }
    }

    fn on_v5(&mut self, event: v5::Event) -> Event {
        match event {
            v5::Event::Incoming(p5::Packet::Publish(publish)) => Event::Publish(Publish {
                packet_id: publish.pkid,
                topic: publish.topic,
                payload: publish.payload,
                dup: publish.dup,
            }),
            v5::Event::Incoming(p5::Packet::ConnAck(ack)) => {
                let properties = ack.properties.as_ref();
                Event::Connected(Granted {
                    session_present: ack.session_present,
                    session_expiry: properties
                        .and_then(|p| p.session_expiry_interval)
                        .map(|seconds| Duration::from_secs(seconds.into())),
                    max_packet: properties.and_then(|p| p.max_packet_size),
                    max_qos: properties.and_then(|p| p.max_qos).unwrap_or(2),
                })
            }
            v5::Event::Incoming(p5::Packet::SubAck(ack)) => Event::Subscribed(
                ack.return_codes
                    .into_iter()
                    .map(|code| match code {
                        p5::SubscribeReasonCode::Success(qos) => Ok(qos as u8),
                        refused => Err(format!("{refused:?}")),
                    })
                    .collect(),
            ),
            v5::Event::Incoming(p5::Packet::PubAck(_)) => Event::Published,
            v5::Event::Incoming(p5::Packet::UnsubAck(ack)) => self.unsubscribed(ack.pkid),
            v5::Event::Outgoing(outgoing) => self.on_outgoing(&outgoing),
            v5::Event::Incoming(_) => Event::Alive,
        }
    }

    fn on_v311(&mut self, event: rumqttc::Event) -> Event {
        match event {
            rumqttc::Event::Incoming(p4::Packet::Publish(publish)) => Event::Publish(Publish {
                packet_id: publish.pkid,
                topic: publish.topic.into(),
                payload: publish.payload,
                dup: publish.dup,
            }),
            rumqttc::Event::Incoming(p4::Packet::ConnAck(ack)) => Event::Connected(Granted {
                session_present: ack.session_present,
                max_qos: 2,
                ..Granted::default()
            }),
            rumqttc::Event::Incoming(p4::Packet::SubAck(ack)) => Event::Subscribed(
                ack.return_codes
                    .into_iter()
                    .map(|code| match code {
                        p4::SubscribeReasonCode::Success(qos) => Ok(qos as u8),
                        p4::SubscribeReasonCode::Failure => Err("Failure".to_owned()),
                    })
                    .collect(),
            ),
            rumqttc::Event::Incoming(p4::Packet::PubAck(_)) => Event::Published,
            rumqttc::Event::Incoming(p4::Packet::UnsubAck(ack)) => self.unsubscribed(ack.pkid),
            rumqttc::Event::Outgoing(outgoing) => self.on_outgoing(&outgoing),
            rumqttc::Event::Incoming(_) => Event::Alive,
        }
    }

    fn on_outgoing(&mut self, outgoing: &rumqttc::Outgoing) -> Event {
        match outgoing {
            rumqttc::Outgoing::Disconnect => Event::Disconnected,
            rumqttc::Outgoing::Unsubscribe(packet_id) => {
                if let Some((_, waiting)) = self.unsubscribing.iter_mut().find(|(_, id)| id.is_none()) {
                    *waiting = Some(*packet_id);
                }
                Event::Alive
            }
            _ => Event::Alive,
        }
    }

    fn unsubscribed(&mut self, packet_id: u16) -> Event {
        match self.unsubscribing.iter().position(|(_, id)| *id == Some(packet_id)) {
            Some(index) => match self.unsubscribing.remove(index) {
                Some((filter, _)) => Event::Unsubscribed(filter),
                None => Event::Alive,
            },
            None => Event::Alive,
        }
    }
}

fn lost_v5(error: v5::ConnectionError) -> Lost {
    use p5::ConnectReturnCode as Code;
    use v5::ConnectionError as Error;
    match error {
        Error::MqttState(v5::StateError::ServerDisconnect { reason_code, reason_string }) => {
            if reason_code == p5::DisconnectReasonCode::SessionTakenOver {
                Lost::TakenOver
            } else {
                Lost::Failed(format!("DISCONNECT {reason_code:?} {}", reason_string.unwrap_or_default()))
            }
        }
        Error::ConnectionRefused(code) => match code {
            Code::BadClientId | Code::ClientIdentifierNotValid => Lost::ClientIdRefused,
            Code::BadUserNamePassword
            | Code::NotAuthorized
            | Code::Banned
            | Code::BadAuthenticationMethod => Lost::LoginRefused(format!("{code:?}")),
            code => Lost::Refused(format!("{code:?}")),
        },
        Error::MqttState(v5::StateError::IncomingPacketTooLarge { pkt_size, max }) => {
            Lost::PacketTooLarge(format!("{pkt_size} > {max} bytes"))
        }
        Error::MqttState(v5::StateError::Deserialization(
            v5::mqttbytes::Error::PayloadSizeLimitExceeded { pkt_size, max },
        )) => Lost::PacketTooLarge(format!("{pkt_size} > {max} bytes")),
        error => Lost::Failed(error.to_string()),
    }
}

fn lost_v311(error: rumqttc::ConnectionError) -> Lost {
    use p4::ConnectReturnCode as Code;
    use rumqttc::ConnectionError as Error;
    match error {
        Error::ConnectionRefused(code) => match code {
            Code::BadClientId => Lost::ClientIdRefused,
            Code::BadUserNamePassword | Code::NotAuthorized => Lost::LoginRefused(format!("{code:?}")),
            code => Lost::Refused(format!("{code:?}")),
        },
        Error::MqttState(rumqttc::StateError::Deserialization(
            rumqttc::mqttbytes::Error::PayloadSizeLimitExceeded(size),
        )) => Lost::PacketTooLarge(format!("{size} bytes")),
        error => Lost::Failed(error.to_string()),
    }
}
