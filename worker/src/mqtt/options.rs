//! How to reach the broker, and what to ask of it.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::{NetworkOptions, TlsConfiguration, Transport};

/// The largest packet that MQTT can carry (MQTT-2.1.4): 268,435,455 bytes and its header.
pub const PROTOCOL_MAX_PACKET: u32 = 268_435_460;

/// QoS 1 in flight towards the broker: only the retire marker is ever published.
const OUTGOING_WINDOW: u16 = 16;

/// How to reach the broker, and what to ask of it.
#[derive(Debug, Clone)]
pub struct Options {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS, where the URL says `mqtts`.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Protocol version.
    pub protocol: Protocol,
    /// Client id, which names the session.
    pub client_id: String,
    /// User name and password.
    pub login: Option<Login>,
    /// Keep-alive interval, at least 5 s.
    pub keep_alive: Duration,
    /// How long the broker keeps the session while nobody is connected. MQTT 5 only.
    pub session_expiry: Duration,
    /// Deliveries the broker may leave unacknowledged. MQTT 5 only.
    pub receive_maximum: u16,
    /// Largest packet to accept, in bytes. MQTT 5 tells the broker, which discards larger messages.
    pub max_packet: u32,
    /// Whether to end an old session at connect.
    pub clean: bool,
}

/// Protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// MQTT 5.0.
    V5,
    /// MQTT 3.1.1.
    V311,
}

/// User name and password. Its `Debug` shows neither.
#[derive(Clone)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(…)")
    }
}

impl Options {
    /// The same broker and login for a short visit under another client id that leaves no session.
    #[must_use]
    pub fn visit(&self, suffix: &str) -> Self {
        Self {
            client_id: format!("{}{suffix}", self.client_id),
            session_expiry: Duration::ZERO,
            clean: true,
            ..self.clone()
        }
    }

    /// Requests that the channel to the event loop must hold without ever being full: an
    /// acknowledgement for each delivery of the window, and an UNSUBSCRIBE for each stale filter.
    pub(super) fn channel_capacity(&self) -> usize {
        let window = match self.protocol {
            Protocol::V5 => self.receive_maximum,
            // The broker alone knows its window; packet ids bound it.
            Protocol::V311 => u16::MAX,
        };
        usize::from(window) + 4096
    }

    fn transport(&self) -> Transport {
        match &self.tls {
            Some(config) => Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(config))),
            None => Transport::tcp(),
        }
    }

    pub(super) fn v5(&self) -> rumqttc::v5::MqttOptions {
        let mut options = rumqttc::v5::MqttOptions::new(&self.client_id, &self.host, self.port);
        options
            .set_transport(self.transport())
            .set_network_options(network())
            .set_keep_alive(self.keep_alive)
            .set_clean_start(self.clean)
            .set_manual_acks(true)
            .set_outgoing_inflight_upper_limit(OUTGOING_WINDOW)
            .set_session_expiry_interval(Some(
                u32::try_from(self.session_expiry.as_secs()).unwrap_or(u32::MAX),
            ))
            .set_receive_maximum(Some(self.receive_maximum))
            .set_max_packet_size(Some(self.max_packet));
        if let Some(login) = &self.login {
            options.set_credentials(&login.username, &login.password);
        }
        options
    }

    pub(super) fn v311(&self) -> rumqttc::MqttOptions {
        let mut options = rumqttc::MqttOptions::new(&self.client_id, &self.host, self.port);
        options
            .set_transport(self.transport())
            .set_keep_alive(self.keep_alive)
            .set_clean_session(self.clean)
            .set_manual_acks(true)
            .set_inflight(OUTGOING_WINDOW)
            .set_max_packet_size(self.max_packet as usize, self.max_packet as usize);
        if let Some(login) = &self.login {
            options.set_credentials(&login.username, &login.password);
        }
        options
    }
}

/// Acknowledgements are small packets that must not wait for one another.
pub(super) fn network() -> NetworkOptions {
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network
}
