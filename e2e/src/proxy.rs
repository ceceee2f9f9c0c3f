//! A TCP proxy that cuts or freezes connections, also in the middle of a COPY or a COMMIT.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Forwards.
    Pass,
    /// Closes every connection and takes no new one.
    Cut,
    /// Forwards nothing and closes nothing.
    Freeze,
}

/// When the proxy begins to do so by itself: on the wire to a PostgreSQL server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// Right after the first data of a COPY of samples passed.
    InCopy,
    /// When COMMIT is asked for, before it passes.
    BeforeCommit,
    /// Right after COMMIT passed, before its answer.
    AfterCommit,
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Its port.
    pub port: u16,
    mode: watch::Sender<Mode>,
    trigger: watch::Sender<Option<(Trigger, Mode)>>,
    fired: Arc<AtomicUsize>,
    /// Bytes passed to the client.
    pub bytes_down: Arc<AtomicU64>,
    limit: Arc<Limit>,
    delay: Arc<AtomicU64>,
}

/// Bytes a second to the server, over all connections.
#[derive(Debug, Default)]
struct Limit {
    bytes_a_second: AtomicU64,
    /// When the next bytes may pass.
    next: tokio::sync::Mutex<Option<tokio::time::Instant>>,
}

impl Limit {
    /// Waits until so many bytes may pass.
    async fn pass(&self, bytes: usize) {
        let rate = self.bytes_a_second.load(Ordering::Relaxed);
        if rate == 0 {
            return;
        }
        let mut next = self.next.lock().await;
        let now = tokio::time::Instant::now();
        let due = next.map_or(now, |due| due.max(now));
        *next = Some(due + Duration::from_secs_f64(bytes as f64 / rate as f64));
        drop(next);
        tokio::time::sleep_until(due).await;
    }
}

impl Proxy {
    /// Starts a proxy before an address.
    pub async fn start(target: String) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), target).await
    }

    /// The same on another address of this machine.
    pub async fn start_at(host: IpAddr, target: String) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await?;
        let port = listener.local_addr()?.port();
        let (mode, modes) = watch::channel(Mode::Pass);
        let trigger = watch::Sender::new(None);
        let proxy = Self {
            port,
            mode: mode.clone(),
            trigger: trigger.clone(),
            fired: Arc::default(),
            bytes_down: Arc::default(),
            limit: Arc::default(),
            delay: Arc::default(),
        };
        let (fired, bytes_down) = (Arc::clone(&proxy.fired), Arc::clone(&proxy.bytes_down));
        let (limit, delay) = (Arc::clone(&proxy.limit), Arc::clone(&proxy.delay));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if *modes.borrow() == Mode::Cut {
                    continue;
                }
                let link = Link {
                    modes: modes.clone(),
                    mode: mode.clone(),
                    trigger: trigger.clone(),
                    fired: Arc::clone(&fired),
                    bytes_down: Arc::clone(&bytes_down),
                    limit: Arc::clone(&limit),
                    delay: Arc::clone(&delay),
                };
                tokio::spawn(link.serve(client, target.clone()));
            }
        });
        Ok(proxy)
    }

    /// Does so from now on.
    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Lets so many bytes a second pass to the server, over all connections; 0 for as many as come.
    pub fn throttle(&self, bytes_a_second: u64) {
        self.limit.bytes_a_second.store(bytes_a_second, Ordering::Relaxed);
    }

    /// Lets what goes to the server wait for so long, each time, as on a long way.
    pub fn slow(&self, delay: Duration) {
        self.delay.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Does so when the trigger is seen, once.
    pub fn arm(&self, trigger: Trigger, mode: Mode) {
        self.trigger.send_replace(Some((trigger, mode)));
    }

    /// How often a trigger was seen.
    pub fn fired(&self) -> usize {
        self.fired.load(Ordering::SeqCst)
    }
}

struct Link {
    modes: watch::Receiver<Mode>,
    mode: watch::Sender<Mode>,
    trigger: watch::Sender<Option<(Trigger, Mode)>>,
    fired: Arc<AtomicUsize>,
    bytes_down: Arc<AtomicU64>,
    limit: Arc<Limit>,
    delay: Arc<AtomicU64>,
}

impl Link {
    /// The trigger and its mode, if these bytes are what it waits for. It is disarmed: two
    /// connections may pass at once.
    fn pull(&self, data: &[u8]) -> Option<(Trigger, Mode)> {
        let mut hit = None;
        self.trigger.send_if_modified(|armed| {
            hit = armed.take_if(|(trigger, _)| matches(*trigger, data));
            hit.is_some()
        });
        hit
    }

    async fn serve(mut self, client: TcpStream, target: String) {
        let Ok(server) = TcpStream::connect(target).await else { return };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let (mut up, mut down) = (vec![0u8; 64 * 1024], vec![0u8; 64 * 1024]);
        loop {
            let mode = *self.modes.borrow_and_update();
            match mode {
                Mode::Cut => return,
                Mode::Freeze => {
                    // A frozen connection stays frozen, even when others pass again.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    return;
                }
                Mode::Pass => {}
            }
            tokio::select! {
                changed = self.modes.changed() => if changed.is_err() { return },
                read = from_client.read(&mut up) => match read {
                    Ok(1..) => {
                        let data = &up[..read.unwrap_or_default()];
                        self.limit.pass(data.len()).await;
                        tokio::time::sleep(Duration::from_millis(self.delay.load(Ordering::Relaxed))).await;
                        let hit = self.pull(data);
                        let pass = !matches!(hit, Some((Trigger::BeforeCommit, _)));
                        if pass && to_server.write_all(data).await.is_err() {
                            return;
                        }
                        if let Some((_, mode)) = hit {
                            if pass {
                                // The server has it; its answer is what the client must not get.
                                tokio::time::sleep(Duration::from_millis(100)).await;
                            }
                            self.fired.fetch_add(1, Ordering::SeqCst);
                            self.mode.send_replace(mode);
                        }
                    }
                    _ => return,
                },
                read = from_server.read(&mut down) => match read {
                    Ok(count @ 1..) => {
                        self.bytes_down.fetch_add(count as u64, Ordering::Relaxed);
                        if to_client.write_all(&down[..count]).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                },
            }
        }
    }
}

/// Whether the client's bytes hold what the trigger waits for.
fn matches(trigger: Trigger, data: &[u8]) -> bool {
    let needle: &[u8] = match trigger {
        Trigger::InCopy => b"PGCOPY\n",
        Trigger::BeforeCommit | Trigger::AfterCommit => b"COMMIT\0",
    };
    data.windows(needle.len()).any(|window| window == needle)
}
