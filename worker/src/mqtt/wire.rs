//! Packets of both protocol versions, in rumqttc's codec.

use bytes::{BufMut, Bytes, BytesMut};
use rumqttc::mqttbytes::{self, v4 as p4};
use rumqttc::v5::mqttbytes::{Error as Error5, QoS as QoS5, v5 as p5};

use super::connection::{Granted, Lost, Publish};
use super::options::{Options, Protocol};
use crate::decode::Compression;

/// A packet from the broker.
#[derive(Debug)]
pub(super) enum Packet {
    ConnAck(Granted),
    SubAck(Vec<Result<u8, String>>),
    UnsubAck(u16),
    Publish(Publish),
    PubAck,
    Pong,
    Other,
}

/// Takes the next whole packet out of the input. A packet that refuses or ends the connection is an error.
pub(super) fn read(
    protocol: Protocol,
    input: &mut BytesMut,
    max_packet: u32,
) -> Result<Option<Packet>, Lost> {
    if protocol == Protocol::V5 {
        complete(input);
    }
    let waiting = input.len();
    match protocol {
        Protocol::V5 => match p5::Packet::read(input, Some(max_packet)) {
            Ok(packet) => from_v5(packet, waiting - input.len()).map(Some),
            Err(Error5::InsufficientBytes(_)) if input.len() == waiting => Ok(None),
            // A whole packet, already taken out, of which a part is missing.
            Err(Error5::InsufficientBytes(_)) => Err(cut_short()),
            Err(Error5::PayloadSizeLimitExceeded { pkt_size, max }) => {
                Err(Lost::PacketTooLarge(format!("{pkt_size} > {max} bytes")))
            }
            Err(error) => Err(Lost::Failed(error.to_string())),
        },
        Protocol::V311 => match p4::Packet::read(input, max_packet as usize) {
            Ok(packet) => from_v311(packet, waiting - input.len()).map(Some),
            Err(mqttbytes::Error::InsufficientBytes(_)) if input.len() == waiting => Ok(None),
            Err(mqttbytes::Error::InsufficientBytes(_)) => Err(cut_short()),
            Err(mqttbytes::Error::PayloadSizeLimitExceeded(size)) => {
                Err(Lost::PacketTooLarge(format!("{size} > {max_packet} bytes")))
            }
            Err(error) => Err(Lost::Failed(error.to_string())),
        },
    }
}

/// A DISCONNECT of MQTT 5 may leave out that it has no properties, as Mosquitto's do; rumqttc waits for
/// them. Nothing follows it.
fn complete(input: &mut BytesMut) {
    if let [0xe0, 1, reason, ..] = input[..] {
        *input = BytesMut::from(&[0xe0, 2, reason, 0][..]);
    }
}

/// MQTT 3.1.1 has no properties: a broker of it alone refuses MQTT 5 by a CONNACK without them.
fn cut_short() -> Lost {
    Lost::Failed("a packet of the broker ends too early, as one of another version of MQTT does".to_owned())
}

fn from_v5(packet: p5::Packet, length: usize) -> Result<Packet, Lost> {
    use p5::ConnectReturnCode as Code;
    Ok(match packet {
        p5::Packet::Publish(publish) => Packet::Publish(Publish {
            packet_id: publish.pkid,
            topic: publish.topic,
            payload: publish.payload,
            compression: publish
                .properties
                .as_ref()
                .and_then(|properties| properties.content_type.as_deref())
                .and_then(Compression::of_content_type),
            held: length,
            dup: publish.dup,
            user_properties: publish.properties.map(|all| all.user_properties).unwrap_or_default(),
        }),
        p5::Packet::ConnAck(ack) => match ack.code {
            Code::Success => {
                let properties = ack.properties.unwrap_or_else(no_properties);
                let seconds = |seconds: u32| std::time::Duration::from_secs(seconds.into());
                Packet::ConnAck(Granted {
                    session_present: ack.session_present,
                    session_expiry: properties.session_expiry_interval.map(seconds),
                    keep_alive: properties.server_keep_alive.map(u32::from).map(seconds),
                    max_packet: properties.max_packet_size,
                    max_qos: properties.max_qos.unwrap_or(2),
                })
            }
            Code::BadClientId | Code::ClientIdentifierNotValid => return Err(Lost::ClientIdRefused),
            code @ (Code::BadUserNamePassword
            | Code::NotAuthorized
            | Code::Banned
            | Code::BadAuthenticationMethod) => return Err(Lost::LoginRefused(format!("{code:?}"))),
            code => return Err(Lost::Refused(format!("{code:?}"))),
        },
        p5::Packet::SubAck(ack) => Packet::SubAck(
            ack.return_codes
                .into_iter()
                .map(|code| match code {
                    p5::SubscribeReasonCode::Success(qos) => Ok(qos as u8),
                    refused => Err(format!("{refused:?}")),
                })
                .collect(),
        ),
        p5::Packet::UnsubAck(ack) => Packet::UnsubAck(ack.pkid),
        p5::Packet::PubAck(_) => Packet::PubAck,
        p5::Packet::PingResp(_) => Packet::Pong,
        p5::Packet::Disconnect(end) => {
            if end.reason_code == p5::DisconnectReasonCode::SessionTakenOver {
                return Err(Lost::TakenOver);
            }
            let reason = end.properties.and_then(|properties| properties.reason_string).unwrap_or_default();
            return Err(Lost::Failed(format!("DISCONNECT {:?} {reason}", end.reason_code)));
        }
        _ => Packet::Other,
    })
}

fn from_v311(packet: p4::Packet, length: usize) -> Result<Packet, Lost> {
    use p4::ConnectReturnCode as Code;
    Ok(match packet {
        p4::Packet::Publish(publish) => Packet::Publish(Publish {
            packet_id: publish.pkid,
            // Copied by rumqttc; of MQTT 5 it is a part of the packet.
            held: length + publish.topic.len(),
            topic: publish.topic.into(),
            payload: publish.payload,
            compression: None,
            dup: publish.dup,
            user_properties: Vec::new(),
        }),
        p4::Packet::ConnAck(ack) => match ack.code {
            Code::Success => Packet::ConnAck(Granted {
                session_present: ack.session_present,
                max_qos: 2,
                ..Granted::default()
            }),
            Code::BadClientId => return Err(Lost::ClientIdRefused),
            code @ (Code::BadUserNamePassword | Code::NotAuthorized) => {
                return Err(Lost::LoginRefused(format!("{code:?}")));
            }
            code => return Err(Lost::Refused(format!("{code:?}"))),
        },
        p4::Packet::SubAck(ack) => Packet::SubAck(
            ack.return_codes
                .into_iter()
                .map(|code| match code {
                    p4::SubscribeReasonCode::Success(qos) => Ok(qos as u8),
                    p4::SubscribeReasonCode::Failure => Err("Failure".to_owned()),
                })
                .collect(),
        ),
        p4::Packet::UnsubAck(ack) => Packet::UnsubAck(ack.pkid),
        p4::Packet::PubAck(_) => Packet::PubAck,
        p4::Packet::PingResp => Packet::Pong,
        _ => Packet::Other,
    })
}

fn no_properties() -> p5::ConnAckProperties {
    p5::ConnAckProperties {
        session_expiry_interval: None,
        receive_max: None,
        max_qos: None,
        retain_available: None,
        max_packet_size: None,
        assigned_client_identifier: None,
        topic_alias_max: None,
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: None,
        server_keep_alive: None,
        response_information: None,
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    }
}

/// CONNECT.
pub(super) fn connect(options: &Options, out: &mut BytesMut) -> Result<(), Lost> {
    let keep_alive = u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX);
    match options.protocol {
        Protocol::V5 => {
            let login = options.login.as_ref().map(|login| p5::Login::new(&login.username, &login.password));
            let properties = p5::ConnectProperties {
                session_expiry_interval: Some(
                    u32::try_from(options.session_expiry.as_secs()).unwrap_or(u32::MAX),
                ),
                receive_maximum: Some(options.receive_maximum),
                max_packet_size: Some(options.max_packet),
                ..p5::ConnectProperties::new()
            };
            let connect = p5::Connect {
                keep_alive,
                client_id: options.client_id.clone(),
                clean_start: options.clean,
                properties: Some(properties),
            };
            written(connect.write(&None, &login, out).map_err(|error| error.to_string()))
        }
        Protocol::V311 => {
            let mut connect = p4::Connect::new(&options.client_id);
            connect.keep_alive = keep_alive;
            connect.clean_session = options.clean;
            if let Some(login) = &options.login {
                connect.set_login(&login.username, &login.password);
            }
            written(connect.write(out).map_err(|error| error.to_string()))
        }
    }
}

fn written(result: Result<usize, String>) -> Result<(), Lost> {
    result.map(drop).map_err(Lost::Failed)
}

/// SUBSCRIBE, all filters in one packet. Retained messages come with a new subscription only, at QoS 0 always.
pub(super) fn subscribe(
    protocol: Protocol,
    packet_id: u16,
    filters: &[String],
    protected: bool,
    out: &mut BytesMut,
) -> bool {
    let qos5 = if protected { QoS5::AtLeastOnce } else { QoS5::AtMostOnce };
    let qos4 = if protected { mqttbytes::QoS::AtLeastOnce } else { mqttbytes::QoS::AtMostOnce };
    match protocol {
        Protocol::V5 => {
            let filters = filters.iter().map(|filter| {
                let mut filter = p5::Filter::new(filter, qos5);
                if protected && !filter.path.starts_with("$share/") {
                    filter.retain_forward_rule = p5::RetainForwardRule::OnNewSubscribe;
                }
                filter
            });
            let mut subscribe = p5::Subscribe::new_many(filters, None);
            subscribe.pkid = packet_id;
            subscribe.write(out).is_ok()
        }
        Protocol::V311 => {
            let filters = filters.iter().map(|filter| p4::SubscribeFilter::new(filter.clone(), qos4));
            let mut subscribe = p4::Subscribe::new_many(filters);
            subscribe.pkid = packet_id;
            subscribe.write(out).is_ok()
        }
    }
}

/// UNSUBSCRIBE of one filter.
pub(super) fn unsubscribe(protocol: Protocol, packet_id: u16, filter: &str, out: &mut BytesMut) -> bool {
    match protocol {
        Protocol::V5 => {
            let mut unsubscribe = p5::Unsubscribe::new(filter, None);
            unsubscribe.pkid = packet_id;
            unsubscribe.write(out).is_ok()
        }
        Protocol::V311 => {
            let mut unsubscribe = p4::Unsubscribe::new(filter);
            unsubscribe.pkid = packet_id;
            unsubscribe.write(out).is_ok()
        }
    }
}

/// PUBLISH at QoS 1; at QoS 0 where the packet id is 0.
pub(super) fn publish(
    protocol: Protocol,
    packet_id: u16,
    topic: &str,
    payload: &[u8],
    out: &mut BytesMut,
) -> bool {
    let payload = Bytes::copy_from_slice(payload);
    match protocol {
        Protocol::V5 => {
            let qos = if packet_id == 0 { QoS5::AtMostOnce } else { QoS5::AtLeastOnce };
            let mut publish = p5::Publish::new(topic, qos, payload, None);
            publish.pkid = packet_id;
            publish.write(out).is_ok()
        }
        Protocol::V311 => {
            let qos = if packet_id == 0 { mqttbytes::QoS::AtMostOnce } else { mqttbytes::QoS::AtLeastOnce };
            let mut publish = p4::Publish::from_bytes(topic, qos, payload);
            publish.pkid = packet_id;
            publish.write(out).is_ok()
        }
    }
}

/// PUBACK, the same in both versions (MQTT-3.4.2.1: without a reason it means success).
pub(super) fn acknowledge(packet_id: u16, out: &mut BytesMut) {
    out.put_slice(&[0x40, 2]);
    out.put_u16(packet_id);
}

/// PINGREQ, the same in both versions.
pub(super) fn ping(out: &mut BytesMut) {
    out.put_slice(&[0xc0, 0]);
}

/// DISCONNECT that keeps the session, the same in both versions.
pub(super) fn disconnect(out: &mut BytesMut) {
    out.put_slice(&[0xe0, 0]);
}
