use divot_data::world::{Oracle, Split, Texture, World};
use divot_data::{Frame, metrics};

use crate::world;

/// Shares of test objects of which shape, colour, size and motion are read as they are, and of clips whose objects are
/// counted right.
fn accuracy(count: u64, size: usize, change: impl Fn(&Frame) -> Frame) -> [f64; 5] {
    let oracle = Oracle::default();
    let (mut right, mut objects) = ([0.0; 5], 0.0);
    for index in 0..count {
        let scene = world(Split::Test).scene(index);
        let frames: Vec<Frame> = scene.frames(size, 16).iter().map(&change).collect();
        let verdict = oracle.read(&frames).verdict(&scene);
        right[4] += f64::from(u8::from(verdict.count));
        for agreement in verdict.objects {
            objects += 1.0;
            let one = [
                agreement.shape,
                agreement.colour,
                agreement.size,
                agreement.motion,
            ];
            for (sum, one) in right.iter_mut().zip(one) {
                *sum += f64::from(u8::from(one));
            }
        }
    }
    let [shape, colour, size, motion] =
        [right[0], right[1], right[2], right[3]].map(|sum| sum / objects);
    [shape, colour, size, motion, right[4] / count as f64]
}

#[test]
fn it_reads_what_is_there() {
    let shares = accuracy(250, 64, Frame::clone);
    assert!(shares.iter().all(|&share| share >= 0.99), "{shares:?}");
    let larger = accuracy(40, 128, Frame::clone);
    assert!(larger.iter().all(|&share| share >= 0.99), "{larger:?}");
}

/// Takes the mean of nine pixels, three times over, and some of the colour.
fn blurred(frame: &Frame) -> Frame {
    let mut frame = frame.clone();
    for _ in 0..3 {
        let before = frame.clone();
        for at in 0..frame.width * frame.height {
            let (x, y) = (at % frame.width, at / frame.width);
            let mut sum = [0u32; 3];
            for near in 0..9 {
                let column = (x + near % 3).saturating_sub(1).min(frame.width - 1);
                let row = (y + near / 3).saturating_sub(1).min(frame.height - 1);
                let pixel = before.pixel(column, row);
                sum = std::array::from_fn(|i| sum[i] + u32::from(pixel[i]));
            }
            let grey = sum.iter().sum::<u32>() / 27;
            for (value, sum) in frame.rgb[at * 3..].iter_mut().zip(sum) {
                *value = ((sum / 9 * 4 + grey) / 5) as u8;
            }
        }
    }
    frame
}

#[test]
fn it_reads_blurred_clips() {
    let frame = &world(Split::Test).scene(0).frames(64, 2)[0];
    assert!(metrics::psnr(frame, &blurred(frame)).unwrap() < 27.0);
    let shares = accuracy(100, 64, blurred);
    assert!(shares.iter().all(|&share| share >= 0.97), "{shares:?}");
}

#[test]
fn it_tells_what_is_not_there() {
    let oracle = Oracle::default();
    let world = world(Split::Test);
    let mut right = 0;
    for index in 0..50 {
        let frames = world.scene(index).frames(64, 16);
        let verdict = oracle.read(&frames).verdict(&world.scene(index + 50));
        right += u8::from(verdict.is_right());
    }
    assert!(right <= 1, "{right} of 50 clips pass for another");

    let mut empty = world.scene(0);
    empty.objects.clear();
    assert!(oracle.read(&empty.frames(64, 16)).objects.is_empty());
    assert!(oracle.read(&[]).objects.is_empty());
    let one = oracle.read(&[Frame::filled(1, 1, [255, 0, 0]).unwrap()]);
    assert!(one.objects.is_empty());
}

#[test]
fn it_bears_any_frames() {
    let textures = World {
        textures: 1.0,
        ..World::default()
    };
    let frames = |index: u64| -> Vec<Frame> {
        match textures.content(index) {
            divot_data::world::Content::Textures(texture) => Texture::frames(&texture, 32, 3),
            divot_data::world::Content::Sprites(_) => unreachable!("all are textures"),
        }
    };
    let most = (0..20)
        .map(|index| Oracle::default().read(&frames(index)).objects.len())
        .max();
    assert!(most.unwrap() <= 2);
}
