//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const POLL: Duration = Duration::from_millis(25);

/// Waits until the condition holds.
pub async fn until_async<F: Future<Output = bool>>(
    what: &str,
    patience: Duration,
    mut holds: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds().await {
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain until: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Waits until the condition holds, blocking the thread.
pub fn until_blocking(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds() {
        if Instant::now() > deadline {
            bail!("waited {patience:?} in vain until: {what}");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
