//! Waiting for the machine's clock.

use crate::state::Driver;

/// Waits until a point of the machine's time. Never called with the state's lock held.
pub(crate) fn until(driver: &Driver, at_ns: u64) {
    driver.process.sleep_until(at_ns);
}
