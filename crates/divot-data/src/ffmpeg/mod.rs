//! Formats that are not decoded here, through the `ffmpeg` and `ffprobe` programs.
//!
//! The programs are given one file to read and nothing else: no standard input, no network, and
//! none of the formats (playlists, scripts) that name other files.

mod decode;
mod matroska;
mod probe;
mod run;
mod sniff;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::Result;
pub(crate) use probe::Probe;
use run::Run;
pub(crate) use sniff::{Still, sniff, still};

/// Demuxers that the programs may use. What is missing here reads other files or devices
/// (`hls`, `concat`, `dash`, `sdp`, `image2`, `lavfi`), or makes a video of text (`tty`).
const FORMATS: &str = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,vvc,evc,av1,obu,ivf,\
    m4v,h263,h261,flv,live_flv,kux,asf,asf_o,ogg,mxf,gxf,nut,nsv,rm,swf,yuv4mpegpipe,dv,dnxhd,\
    dirac,vc1,vc1test,cavsvideo,avs2,avs3,mjpeg,mjpeg_2000,smjpeg,wtv,film_cpk,roq,smk,bink,flic,\
    idcin,vmd,4xm,ea,cine,r3d,mlv,mv,mtv,nuv,pva,pmp,psxstr,rl2,thp,tiertexseq,txd,vividas,vivo,\
    wc3movie,wsvqa,xmv,yop,dxa,c93,bethsoftvid,bfi,ivr,jv,lxf,lmlm4,brp,argo_brp,gif,apng,fits,\
    bmp_pipe,cri_pipe,dds_pipe,dpx_pipe,exr_pipe,gem_pipe,hdr_pipe,j2k_pipe,jpeg_pipe,\
    jpegls_pipe,jpegxl_pipe,jpegxl_anim,pam_pipe,pbm_pipe,pcx_pipe,pfm_pipe,pgm_pipe,pgmyuv_pipe,\
    pgx_pipe,phm_pipe,photocd_pipe,pictor_pipe,png_pipe,ppm_pipe,psd_pipe,qdraw_pipe,qoi_pipe,\
    sgi_pipe,sunrast_pipe,tiff_pipe,vbn_pipe,webp_pipe,xbm_pipe,xpm_pipe,xwd_pipe,\
    mp3,flac,wav,w64,aac,aiff,ape,tak,tta,wv,dsf,mpc,mpc8,amr,ac3,eac3,dts,caf,oma,voc,au";

/// Where the two programs are, and what they may take.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// A plain name is looked up on the PATH.
    pub ffmpeg: PathBuf,
    /// Likewise.
    pub ffprobe: PathBuf,
    /// Longest time without output before a program is ended.
    pub silence: Duration,
    /// Pixels of the largest picture that is decoded.
    pub max_pixels: u64,
}

impl Programs {
    /// Starts `ffprobe` on a file, with more arguments.
    fn ffprobe<'a>(
        &'a self,
        path: &'a Path,
        codec: &'a str,
        arguments: &[&str],
    ) -> Result<Run<'a>> {
        let mut command = Command::new(&self.ffprobe);
        command.args(["-v", "error"]);
        self.restrict(&mut command);
        command.args(arguments).arg("-i").arg(input(path));
        Run::start(
            path,
            codec,
            &self.ffprobe,
            command,
            self.silence,
            self.max_pixels,
        )
    }

    /// Starts `ffmpeg` on a file, with arguments before and after the input; it writes to its
    /// standard output.
    fn ffmpeg<'a>(
        &'a self,
        path: &'a Path,
        codec: &'a str,
        before: &[String],
        after: &[&str],
    ) -> Result<Run<'a>> {
        let mut command = Command::new(&self.ffmpeg);
        command.args(["-v", "error", "-nostdin"]);
        self.restrict(&mut command);
        command.args(before).arg("-i").arg(input(path));
        command.args(after).arg("pipe:1");
        Run::start(
            path,
            codec,
            &self.ffmpeg,
            command,
            self.silence,
            self.max_pixels,
        )
    }

    fn restrict(&self, command: &mut Command) {
        let pixels = self.max_pixels.min(i32::MAX as u64).to_string();
        command
            .args(["-protocol_whitelist", "file", "-format_whitelist", FORMATS])
            .args(["-max_pixels", &pixels]);
    }
}

/// The file as FFmpeg's own protocol spells it, so that no name is taken for an option or a URL.
fn input(path: &Path) -> OsString {
    let mut url = OsString::from("file:");
    url.push(path);
    url
}
