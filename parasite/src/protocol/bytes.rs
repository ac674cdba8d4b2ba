//! The structures of the protocol as bytes and back, field by field, little-endian: for the supervisor, which thus
//! needs no unsafe code. The stub reads the same bytes in place, so the tests hold both against each other.

use super::{Boot, Call, Reply, Request};

/// Fills an array from its beginning.
struct Writer<const LENGTH: usize> {
    bytes: [u8; LENGTH],
    position: usize,
}

impl<const LENGTH: usize> Writer<LENGTH> {
    fn new() -> Self {
        Self { bytes: [0; LENGTH], position: 0 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        let end = self.position + field.len();
        if let Some(place) = self.bytes.get_mut(self.position..end) {
            place.copy_from_slice(field);
        }
        self.position = end;
        self
    }
}

/// Takes fields from the beginning of a slice.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
}

impl Boot {
    /// As it stands at the beginning of a boot page.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        Writer::new()
            .put(&self.magic.to_le_bytes())
            .put(&self.version.to_le_bytes())
            .put(&self.mode.to_le_bytes())
            .put(&self.socket.to_le_bytes())
            .put(&self.peer.to_le_bytes())
            .put(&self.area.to_le_bytes())
            .put(&self.home.to_le_bytes())
            .put(&self.epitaph.to_le_bytes())
            .put(&self.epitaph_detail.to_le_bytes())
            .bytes
    }

    /// From the beginning of a boot page; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            magic: reader.u64()?,
            version: reader.u32()?,
            mode: reader.u32()?,
            socket: reader.i32()?,
            peer: reader.i32()?,
            area: reader.u64()?,
            home: reader.u64()?,
            epitaph: reader.u64()?,
            epitaph_detail: reader.u64()?,
        })
    }
}

impl Request {
    /// As it stands at the beginning of a request.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        Writer::new()
            .put(&self.version.to_le_bytes())
            .put(&self.call_count.to_le_bytes())
            .put(&self.data_length.to_le_bytes())
            .put(&self.reply_data_length.to_le_bytes())
            .bytes
    }

    /// From the beginning of a request; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            version: reader.u32()?,
            call_count: reader.u32()?,
            data_length: reader.u32()?,
            reply_data_length: reader.u32()?,
        })
    }
}

impl Reply {
    /// As it stands at the beginning of a reply.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        Writer::new()
            .put(&self.version.to_le_bytes())
            .put(&self.call_count.to_le_bytes())
            .put(&self.data_length.to_le_bytes())
            .put(&self.descriptor_count.to_le_bytes())
            .bytes
    }

    /// From the beginning of a reply; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        Some(Self {
            version: reader.u32()?,
            call_count: reader.u32()?,
            data_length: reader.u32()?,
            descriptor_count: reader.u32()?,
        })
    }
}

impl Call {
    /// As it stands in a request.
    #[must_use]
    pub fn to_bytes(self) -> [u8; size_of::<Self>()] {
        let with_number = Writer::new().put(&self.number.to_le_bytes());
        self.arguments
            .iter()
            .fold(with_number, |writer, argument| writer.put(&argument.to_le_bytes()))
            .put(&self.kinds)
            .put(&[self.flags, self.reserved])
            .bytes
    }

    /// From its place in a request; nothing if there are too few bytes. Does not check what is in it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let number = reader.u64()?;
        let mut arguments = [0; 6];
        for argument in &mut arguments {
            *argument = reader.u64()?;
        }
        let kinds = reader.take()?;
        let [flags, reserved] = reader.take()?;
        Some(Self { number, arguments, kinds, flags, reserved })
    }
}

#[cfg(test)]
mod tests {
    use super::{Boot, Call, Reply, Request};
    use core::mem::offset_of;

    /// Holds that the bytes of these fields stand where `repr(C)` puts them, and that they come back.
    macro_rules! check_layout {
        ($type:ident, $length:literal, { $($field:ident: $value:expr),* $(,)? }) => {{
            let given = $type { $($field: $value),* };
            let bytes = given.to_bytes();
            assert_eq!((bytes.len(), size_of::<$type>()), ($length, $length));
            let mut covered = 0;
            $(
                let field = given.$field.to_le_bytes();
                let offset = offset_of!($type, $field);
                assert_eq!(bytes[offset..offset + field.len()], field, stringify!($field));
                covered += field.len();
            )*
            assert_eq!(covered, $length, "no padding");
            assert_eq!($type::from_bytes(&bytes), Some(given));
            assert_eq!($type::from_bytes(&bytes[1..]), None);
        }};
    }

    #[test]
    fn a_boot_page_is_as_the_stub_reads_it() {
        check_layout!(Boot, 56, {
            magic: 0x0102_0304_0506_0708,
            version: 0x1112_1314,
            mode: 0x2122_2324,
            socket: -2,
            peer: -3,
            area: 0x3132_3334_3536_3738,
            home: 0x4142_4344_4546_4748,
            epitaph: 0x5152_5354_5556_5758,
            epitaph_detail: 0x6162_6364_6566_6768,
        });
    }

    #[test]
    fn headers_are_as_the_stub_reads_and_writes_them() {
        check_layout!(Request, 16, { version: 1, call_count: 2, data_length: 3, reply_data_length: 4 });
        check_layout!(Reply, 16, { version: 5, call_count: 6, data_length: 7, descriptor_count: 8 });
    }

    #[test]
    fn a_call_is_as_the_stub_reads_it() {
        let call = Call {
            number: 1,
            arguments: [2, 3, 4, 5, 6, u64::MAX],
            kinds: [0, 1, 2, 3, 4, 5],
            flags: 8,
            reserved: 9,
        };
        let bytes = call.to_bytes();
        assert_eq!((bytes.len(), size_of::<Call>()), (64, 64));
        assert_eq!(bytes[offset_of!(Call, number)], 1);
        for (index, argument) in call.arguments.iter().enumerate() {
            let offset = offset_of!(Call, arguments) + index * 8;
            assert_eq!(bytes[offset..offset + 8], argument.to_le_bytes());
        }
        let kinds = offset_of!(Call, kinds);
        assert_eq!(bytes[kinds..kinds + 6], call.kinds);
        assert_eq!(bytes[offset_of!(Call, flags)], 8);
        assert_eq!(bytes[offset_of!(Call, reserved)], 9);
        assert_eq!(Call::from_bytes(&bytes), Some(call));
        assert_eq!(Call::from_bytes(&bytes[..63]), None);
    }
}
