#!/usr/bin/perl
# Tells what happens on several hosts, for as long as it runs:
#     perl examples/watch-hosts.pl qemu+ssh://root@one/system qemu+ssh://root@two/system
use strict;
use warnings;
use AnyEvent;
use Sys::Virt::Event::AnyEvent -register;
use Sys::Virt::Event::Connection;

$| = 1;
binmode STDOUT, ':encoding(UTF-8)';
my $end = AnyEvent->condvar;
my @signals = map { AnyEvent->signal(signal => $_, cb => $end) } qw(INT TERM);

sub show {
    my ($event, @what) = @_;
    print join(' ', grep { defined } @$event{qw(time uri name event type detail)}, @what), "\n";
}

my @conns = map { Sys::Virt::Event::Connection->new(uri => $_, readonly => 1, keepalive => [5, 3]) } @ARGV;
for my $conn (@conns) {
    $conn->on('domain/*'     => sub { my ($conn, $event) = @_; show($event) });
    $conn->on('connection/*' => sub { my ($conn, $event) = @_; show($event, @{ $event->{args} }{qw(reason error)}) });
}
$end->recv;
$_->close for @conns;
