//! How to reach the broker, and what to ask of it.

use std::sync::Arc;
use std::time::Duration;

/// The largest packet that MQTT can carry (MQTT-2.1.4): 268,435,455 bytes and its header.
pub const PROTOCOL_MAX_PACKET: u32 = 268_435_460;

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
    /// Of one session of the shard. The first has the shard's client id, the others append their number.
    #[must_use]
    pub fn of_session(&self, session: u8) -> Self {
        let mut options = self.clone();
        if session > 0 {
            options.client_id = format!("{}-{session}", self.client_id);
        }
        options
    }

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
}
