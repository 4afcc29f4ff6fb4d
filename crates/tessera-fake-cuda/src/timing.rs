//! Waiting for the machine's clock.

use std::time::Duration;

use crate::state::Driver;

/// Waits until a point of the machine's time. Never called with the state's lock held.
pub(crate) fn until(driver: &Driver, at_ns: u64) {
    loop {
        let now = driver.machine.now_ns();
        if now >= at_ns {
            return;
        }
        let left = at_ns - now;
        if left > 60_000 {
            // The rest is spun: a sleep ends late by about the timer slack. Short naps also let
            // a driven clock be seen.
            std::thread::sleep(Duration::from_nanos((left - 50_000).min(5_000_000)));
        } else {
            std::hint::spin_loop();
        }
    }
}
