//! A short sleep of a thread that has nothing else to do. Waiting for I/O it would be woken by each packet
//! that comes, also while nobody reads them.

use std::cell::Cell;
use std::time::Duration;

/// As long as a timer of one millisecond can take, so that the rests of all the thread's connections pass in it.
const NAP: Duration = Duration::from_millis(2);

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// Has this thread sleep once before it waits for I/O the next time.
pub(super) fn ask() {
    ASKED.set(true);
}

#[cfg(test)]
pub(super) fn is_asked() -> bool {
    ASKED.get()
}

/// To be called when this thread has nothing else to do: sleeps if it was asked to.
pub fn take() {
    if ASKED.take() {
        std::thread::sleep(NAP);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_thread_sleeps_once_for_all_that_asked() {
        take();
        assert!(!is_asked());
        ask();
        ask();
        let start = Instant::now();
        take();
        assert!(start.elapsed() >= NAP);
        assert!(!is_asked(), "it would sleep again");
    }
}
