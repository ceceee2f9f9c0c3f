//! Log lines on standard error: one for each event worth reading, none for each message.

use tracing_subscriber::EnvFilter;

/// Starts logging, as text or as JSON. `RUST_LOG` sets the level; `info` if not given.
pub fn start(json: bool) {
    // rumqttc warns of what the session reports itself, with more to say.
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,rumqttc=error,sqlx=error"));
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    if json {
        lines.json().flatten_event(true).init();
    } else {
        lines.with_ansi(false).init();
    }
}
