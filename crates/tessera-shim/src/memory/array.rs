//! Arrays and mipmapped arrays: textures and surfaces. The driver does not say what they take, so it is computed from
//! the description, in units of 64 KiB.

use super::{allocate, free};
use crate::{
    address::{Entry, Space},
    argument::{given, written},
    codes::{INVALID_VALUE, OUT_OF_MEMORY},
    place::{self, current_context},
    process::started,
};

const UNIT: u64 = 64 << 10;
/// `CUDA_ARRAY3D_SPARSE` and `CUDA_ARRAY3D_DEFERRED_MAPPING`: memory comes later, by mapping.
const WITHOUT_MEMORY: u32 = 0x40 | 0x80;

/// `CUDA_ARRAY_DESCRIPTOR`, first form.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Descriptor1 {
    width: u32,
    height: u32,
    format: i32,
    channels: u32,
}

/// `CUDA_ARRAY_DESCRIPTOR`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Descriptor {
    width: usize,
    height: usize,
    format: i32,
    channels: u32,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`, first form.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Descriptor3d1 {
    width: u32,
    height: u32,
    depth: u32,
    format: i32,
    channels: u32,
    flags: u32,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Descriptor3d {
    width: usize,
    height: usize,
    depth: usize,
    format: i32,
    channels: u32,
    flags: u32,
}

impl Descriptor3d {
    /// Bytes of an array of this description with so many levels; nothing when that overflows.
    pub(super) fn bytes(&self, levels: u32) -> Option<u64> {
        self.shape().bytes(levels)
    }

    fn shape(&self) -> Shape {
        Shape {
            extent: [wide(self.width), wide(self.height), wide(self.depth)],
            format: self.format,
            channels: self.channels,
            flags: self.flags,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    extent: [u64; 3],
    format: i32,
    channels: u32,
    flags: u32,
}

impl Shape {
    /// Bytes of `levels` levels, each half as large as the one before; nothing when that overflows.
    fn bytes(self, levels: u32) -> Option<u64> {
        if self.flags & WITHOUT_MEMORY != 0 {
            return Some(0);
        }
        let mut extent = self.extent.map(|n| n.max(1));
        let mut sum = 0_u64;
        // No array has more levels than its width has bits.
        for _ in 0..levels.clamp(1, 32) {
            let [width, height, depth] = extent;
            let texels = width.checked_mul(height)?.checked_mul(depth)?;
            let bits = texels.checked_mul(bits_per_texel(self.format, self.channels))?;
            sum = sum.checked_add(bits.div_ceil(8))?;
            extent = extent.map(|n| (n / 2).max(1));
        }
        sum.checked_next_multiple_of(UNIT)
    }
}

/// Bits of one texel: of a channel format times the channels, or of a packed format as a whole.
fn bits_per_texel(format: i32, channels: u32) -> u64 {
    let channels = u64::from(channels.max(1));
    match format {
        // UNSIGNED_INT8, SIGNED_INT8.
        0x01 | 0x08 => channels.saturating_mul(8),
        // UNSIGNED_INT16, SIGNED_INT16, HALF.
        0x02 | 0x09 | 0x10 => channels.saturating_mul(16),
        // BC1 and BC4, signed and not, with and without sRGB: half a byte a texel.
        0x91 | 0x92 | 0x97 | 0x98 => 4,
        // BC2, BC3, BC5, BC6H, BC7.
        0x93..=0x96 | 0x99..=0x9f => 8,
        // NV12: a byte and a half.
        0xb0 => 12,
        // UNORM and SNORM of 8 bits: 1, 2, 4 channels.
        0xc0 | 0xc3 => 8,
        0xc1 | 0xc4 => 16,
        0xc2 | 0xc5 => 32,
        // The same of 16 bits.
        0xc6 | 0xc9 => 16,
        0xc7 | 0xca => 32,
        0xc8 | 0xcb => 64,
        // UNSIGNED_INT32, SIGNED_INT32, FLOAT; and what this table does not know.
        _ => channels.saturating_mul(32),
    }
}

fn wide(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn make(space: Space, shape: Shape, levels: u32, call: impl FnOnce() -> i32, key: impl FnOnce() -> u64) -> i32 {
    let Some(bytes) = shape.bytes(levels) else {
        return OUT_OF_MEMORY;
    };
    allocate(place::current(), bytes, call, |entry| {
        (
            space,
            key(),
            Entry {
                context: current_context(),
                ..entry
            },
        )
    })
}

/// A hook that makes an array from one of the descriptors.
macro_rules! maker {
    ($name:ident, $descriptor:ty, $space:ident, |$d:ident| $shape:expr $(, $levels:ident)?) => {
        pub(crate) unsafe fn $name(
            real: unsafe extern "C" fn(*mut u64, *const $descriptor $(, $levels)?) -> i32,
            out: *mut u64,
            descriptor: *const $descriptor
            $(, levels: $levels)?
        ) -> i32 {
            // SAFETY: the caller's arguments.
            let call = || unsafe { real(out, descriptor $(, levels as $levels)?) };
            if out.is_null() || descriptor.is_null() {
                return call();
            }
            // SAFETY: integers only.
            let Some($d) = (unsafe { given(descriptor) }) else {
                return INVALID_VALUE;
            };
            let shape = $shape;
            #[allow(unused_mut, unused_assignments, reason = "only one of the makers has levels")]
            let mut count: u32 = 1;
            $(count = levels as $levels;)?
            // SAFETY: not null, and written by the driver.
            make(Space::$space, shape, count, call, || unsafe { written(out) })
        }
    };
}

maker!(create_v1, Descriptor1, Array, |d| Shape {
    extent: [u64::from(d.width), u64::from(d.height), 1],
    format: d.format,
    channels: d.channels,
    flags: 0,
});
maker!(create, Descriptor, Array, |d| Shape {
    extent: [wide(d.width), wide(d.height), 1],
    format: d.format,
    channels: d.channels,
    flags: 0,
});
maker!(create_3d_v1, Descriptor3d1, Array, |d| Shape {
    extent: [u64::from(d.width), u64::from(d.height), u64::from(d.depth)],
    format: d.format,
    channels: d.channels,
    flags: d.flags,
});
maker!(create_3d, Descriptor3d, Array, |d| d.shape());
maker!(create_mipmapped, Descriptor3d, Mipmap, |d| d.shape(), u32);

pub(crate) unsafe fn destroy(real: unsafe extern "C" fn(u64) -> i32, array: u64) -> i32 {
    // SAFETY: the caller's argument.
    free(started(), Space::Array, array, || unsafe { real(array) })
}

pub(crate) unsafe fn destroy_mipmapped(real: unsafe extern "C" fn(u64) -> i32, array: u64) -> i32 {
    // SAFETY: the caller's argument.
    free(started(), Space::Mipmap, array, || unsafe { real(array) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extent: [u64; 3], format: i32, channels: u32, levels: u32, expected: Option<u64>) {
        assert_eq!(
            Shape {
                extent,
                format,
                channels,
                flags: 0
            }
            .bytes(levels),
            expected
        );
    }

    #[test]
    fn sizes_follow_the_description() {
        check([4096, 4096, 1], 32, 4, 1, Some(256 << 20));
        check([1024, 1024, 64], 32, 1, 1, Some(256 << 20));
        check([1, 0, 0], 1, 1, 1, Some(UNIT));
        check([1024, 1024, 0], 0x91, 4, 1, Some(512 << 10));
        // 4 MiB + 1 MiB + 256 KiB + 64 KiB.
        check(
            [1024, 1024, 1],
            32,
            1,
            4,
            Some((4 << 20) + (1 << 20) + (256 << 10) + (64 << 10)),
        );
        check([u64::MAX, 2, 1], 32, 4, 1, None);
    }

    #[test]
    fn memory_that_is_mapped_later_is_not_counted_here() {
        let shape = Shape {
            extent: [1024, 1024, 1],
            format: 32,
            channels: 4,
            flags: 0x40,
        };
        assert_eq!(shape.bytes(1), Some(0));
    }
}
