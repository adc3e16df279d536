# One process uses all adapters, one after another: each is registered when nothing is left with the one before.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";

use Sys::Virt::Event qw(add_handle add_timeout remove_handle remove_timeout drain is_idle registered);
use Sys::Virt::Event::Poll;
use Test::More;
use Test::Sys::Virt::EventImpl::CApi;
use Test::Sys::Virt::EventImpl::Util qw(socket_pair);
use VirtTest qw(watchdog patience warnings_of);
use VirtTest::Adapters;

watchdog(60);

my @adapters = grep { !missing_modules($_) } adapters();
plan skip_all => 'no host loop is installed' if !@adapters;

my $conn = eval { require Sys::Virt } ? sub { Sys::Virt->new(uri => 'test:///default') } : undef;

# Twice, so that each comes after each of its neighbours, and takes over again.
my @warnings = warnings_of {
    for my $round (1, 2) {
        for my $adapter (@adapters, { name => 'Poll', class => 'Sys::Virt::Event::Poll' }) {
            my $loop = VirtTest::Adapters::maker($adapter)->()->register;
            my $name = "$adapter->{name}, round $round";
            is registered(), $loop, "$name: it is registered";

            my ($ours, $theirs) = socket_pair();
            my %told;
            my $handle = add_handle($ours, 1, sub { sysread $ours, my $byte, 1; $told{handle}++ });
            my $timer  = add_timeout(1, sub { $told{timer}++; syswrite $theirs, '.' if $told{timer} == 1 });
            my $of_c   = Test::Sys::Virt::EventImpl::CApi::add_timeout(-1);
            Test::Sys::Virt::EventImpl::CApi::spawn([update_timeout => $of_c, 1]);
            my $virt = $conn && event_of($conn->(), \%told);
            ok $loop->run_until(sub {
                $told{thread} ||= grep { $_->{what} eq 'timer' } Test::Sys::Virt::EventImpl::CApi::events();
                return keys %told == ($virt ? 4 : 3);
            }, patience(10)), "$name: it tells all" or diag join ' ', sort keys %told;

            undef $virt;
            remove_handle($handle);
            remove_timeout($timer);
            Test::Sys::Virt::EventImpl::CApi::remove_timeout($of_c);
            ok drain(patience(5)) && is_idle(), "$name: nothing is left";
            Test::Sys::Virt::EventImpl::CApi::events();
        }
    }
};
is_deeply \@warnings, [], 'no warnings';

done_testing;

# The domain event of a connection, which lives as long as what this returns.
sub event_of {
    my ($virt, $told) = @_;
    my $id = $virt->domain_event_register_any(
        undef, Sys::Virt::Domain::EVENT_ID_LIFECYCLE(), sub { $told->{event}++ });
    $virt->get_domain_by_name('test')->suspend;
    return Guard->new(sub { $virt->domain_event_deregister_any($id); undef $virt });
}

package Guard;
sub new { my ($class, $code) = @_; return bless { code => $code }, $class }
sub DESTROY { $_[0]{code}->() }
