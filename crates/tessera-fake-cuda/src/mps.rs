//! What a multi-process server does to its clients: two variables of the client's limit it.

use tessera_fake_core::Process;

use crate::state::Device;

/// Applies the variables of this process to its devices.
pub(crate) fn limit(devices: &mut [Device], process: &Process) {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let percent: f64 = variable("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE")
        .trim()
        .parse()
        .unwrap_or(100.0);
    if percent > 0.0 && percent < 100.0 {
        for device in devices.iter_mut() {
            // A share of the multiprocessors, rounded up to whole ones.
            let share = (f64::from(device.sms_total) * percent / 100.0).ceil();
            device.sms = (share as u32).clamp(1, device.sms_total);
        }
    }
    for (number, bytes) in pinned(&variable("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT")) {
        if let Some(device) = devices.get(number) {
            process.limit_pinned(device.card, bytes);
        }
    }
}

/// Reads `0=2G,1=512M`; what cannot be read is left out, as by the server.
fn pinned(text: &str) -> Vec<(usize, u64)> {
    text.split(',')
        .filter_map(|part| {
            let (device, size) = part.trim().split_once('=')?;
            let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let unit = match size.get(digits.len()..)?.to_ascii_uppercase().as_str() {
                "G" | "GB" => 1 << 30,
                "M" | "MB" => 1 << 20,
                "K" | "KB" => 1 << 10,
                "" => 1,
                _ => return None,
            };
            Some((
                device.trim().parse().ok()?,
                digits.parse::<u64>().ok()?.checked_mul(unit)?,
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::pinned;

    #[test]
    fn a_limit_names_device_and_size() {
        assert_eq!(pinned("0=2G,1=512M"), [(0, 2 << 30), (1, 512 << 20)]);
        assert_eq!(pinned("0=1024"), [(0, 1024)]);
        assert_eq!(pinned("0=2X, 3=1K,x=1G,=,"), [(3, 1024)]);
        assert_eq!(pinned(""), []);
    }
}
