//! A Mosquitto broker.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use serde_json::json;

use super::certificates::Authority;
use super::process::{Process, run_in};
use crate::wait::until_blocking;

/// Which Mosquitto.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Release {
    /// Debian's: 2.0.
    #[default]
    Stable,
    /// That of Debian's next release: 2.1 or later.
    Newest,
}

/// How a broker is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which one.
    pub release: Release,
    /// Messages in flight to a client of MQTT 3.1.1.
    pub window: u32,
    /// Messages queued for a client; 0 without a limit.
    pub queue: u32,
    /// A filter that nobody may subscribe.
    pub refused: Option<&'static str>,
    /// A second listener with TLS, and what it asks of clients.
    pub guard: Option<Guard>,
}

/// What the listener with TLS asks of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// A user name and a password.
    Password,
    /// A certificate.
    Certificate,
}

impl Default for Setup {
    fn default() -> Self {
        Self { release: Release::Stable, window: 20, queue: 0, refused: None, guard: None }
    }
}

/// A Mosquitto broker on a port of its own.
#[derive(Debug)]
pub struct Mosquitto {
    root: PathBuf,
    /// Its folder inside the root.
    folder: String,
    /// Its port on loopback.
    pub port: u16,
    /// The port with TLS, where there is one.
    pub secure_port: u16,
    process: Process,
}

impl Mosquitto {
    /// Starts a broker with a folder of its own inside the root.
    pub fn start(root: PathBuf, folder: &str, port: u16, setup: &Setup, bound: bool) -> Result<Self> {
        run_in(&root, &["install", "-d", "-o", "mosquitto", "-g", "mosquitto", folder])?;
        let host = root.join(folder.trim_start_matches('/'));
        // Without log_type debug: each packet in the log would cost more than the packet. 2.1 closes the
        // connection of who publishes more than 2,000,000 bytes, unless told otherwise.
        let secure_port = if setup.guard.is_some() { super::free_port()? } else { 0 };
        let mut config = format!(
            "persistence true\npersistence_location {folder}/\n\
             autosave_interval 1800\nmax_inflight_messages {}\nmax_queued_messages {}\nlog_dest stderr\nlog_type error\n\
             log_type warning\nlog_type notice\nlog_type information\nconnection_messages true\nset_tcp_nodelay true\n\
             allow_anonymous true\nmax_packet_size 268435455\nlistener {port} 127.0.0.1\n",
            setup.window, setup.queue
        );
        if let Some(guard) = setup.guard {
            let _ = write!(
                config,
                "listener {secure_port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/broker.pem\nkeyfile {folder}/broker.key\n"
            );
            // No per_listener_settings: with them Mosquitto 2.0 drops what comes for a client that is away.
            let _ = match guard {
                Guard::Password => writeln!(config, "password_file {folder}/passwords"),
                Guard::Certificate => {
                    writeln!(config, "require_certificate true\nuse_identity_as_username true")
                }
            };
            certify(&host, &Authority::new("first")?)?;
            fs::write(host.join("passwords"), "")?;
        }
        if let Some(filter) = setup.refused {
            // An ACL file would grant the subscription and then deliver nothing.
            fs::write(host.join("security.json"), refusal(filter).to_string())?;
            let library =
                format!("/usr/lib/{}-linux-gnu/mosquitto_dynamic_security.so", std::env::consts::ARCH);
            let _ = write!(config, "plugin {library}\nplugin_opt_config_file {folder}/security.json\n");
        }
        fs::write(host.join("mosquitto.conf"), config)?;
        run_in(&root, &["chown", "-R", "mosquitto:mosquitto", folder])?;
        let process = launch(&root, folder, bound)?;
        let broker = Self { root, folder: folder.to_owned(), port, secure_port, process };
        broker.wait()?;
        Ok(broker)
    }

    fn wait(&self) -> Result<()> {
        until_blocking("Mosquitto answers", Duration::from_secs(10), || {
            std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Lets it outlive this process.
    pub fn leave_running(self) {
        self.process.leave_running();
    }

    /// Stops it as an administrator would; it saves its sessions.
    pub fn stop(&mut self) -> Result<()> {
        self.process.end(Signal::TERM, Duration::from_secs(20)).map(drop)
    }

    /// Starts it again with what it saved.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = launch(&self.root, &self.folder, true)?;
        self.wait()
    }

    /// From its next start it has a certificate of this authority, and trusts clients of it alone.
    pub fn certify(&self, authority: &Authority) -> Result<()> {
        certify(&self.host(), authority)?;
        run_in(&self.root, &["chown", "-R", "mosquitto:mosquitto", &self.folder]).map(drop)
    }

    /// The one user's password from now on.
    pub fn set_password(&self, username: &str, password: &str) -> Result<()> {
        let file = format!("{}/passwords", self.folder);
        run_in(&self.root, &["mosquitto_passwd", "-b", "-c", &file, username, password])?;
        run_in(&self.root, &["chown", "mosquitto:mosquitto", &file])?;
        self.process.signal(Signal::HUP);
        Ok(())
    }

    fn host(&self) -> PathBuf {
        self.root.join(self.folder.trim_start_matches('/'))
    }

    /// Forgets all sessions and messages of a stopped broker.
    pub fn wipe(&self) -> Result<()> {
        let saved = self.host().join("mosquitto.db");
        if saved.exists() {
            fs::remove_file(saved)?;
        }
        Ok(())
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        self.process.tail(15)
    }
}

fn certify(host: &Path, authority: &Authority) -> Result<()> {
    let own = authority.sign("localhost")?;
    fs::write(host.join("ca.pem"), authority.pem())?;
    fs::write(host.join("broker.pem"), own.certificate)?;
    fs::write(host.join("broker.key"), own.key)?;
    Ok(())
}

/// Rules for the dynamic security plugin: all is allowed but one filter.
fn refusal(filter: &str) -> serde_json::Value {
    json!({
        "defaultACLAccess":
            { "publishClientSend": true, "publishClientReceive": true, "subscribe": true, "unsubscribe": true },
        "anonymousGroup": "anonymous",
        "groups": [{ "groupname": "anonymous", "roles": [{ "rolename": "refused" }] }],
        "roles": [{
            "rolename": "refused",
            "acls": [{ "acltype": "subscribeLiteral", "topic": filter, "priority": 1, "allow": false }],
        }],
        "clients": [],
    })
}

fn launch(root: &Path, folder: &str, bound: bool) -> Result<Process> {
    let log = root.join(folder.trim_start_matches('/')).join("mosquitto.log");
    let arguments = ["-c".to_owned(), format!("{folder}/mosquitto.conf")];
    Process::start_with(
        "mosquitto",
        Some((root, "mosquitto")),
        "/usr/sbin/mosquitto",
        &arguments,
        &log,
        bound,
    )
}
